//! Experiments whose clients are other processes: the server's part, the client's part, and what the owner of the data
//! permits. The run itself is that of [`crate::run`].

mod durability;
mod error;
mod join;
mod plan;
mod policy;
mod serving;

pub use durability::Durability;
pub(crate) use durability::Load;
pub use error::FederationError;
pub use join::{JoinOptions, join};
pub use plan::{PlanError, PlannedRun, plan_of};
pub use policy::{Guarded, Policy, PolicyError, Report, Violation};
pub(crate) use serving::Call;
pub use serving::Serving;
