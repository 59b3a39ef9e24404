//! How the examples lie among the clients.

use maud::{Markup, html as markup};

use crate::results::ExperimentResults;

pub(super) fn section(_results: &ExperimentResults) -> Markup {
    markup! { section id="partition" { h2 { "Partition" } } }
}
