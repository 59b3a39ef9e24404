//! Arguments of the commands that run a federation over a network.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::backend::BackendName;
use crate::federation::Durability;

/// Arguments of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// An experiment: suite/name or a .toml file.
    pub target: String,
    /// Address and UDP port to listen on, as in 0.0.0.0:4843; port 0 for any [default: the file's, else all addresses].
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Name or address by which nodes reach the server, for the join string [default: the address listened on].
    #[arg(long)]
    pub public_host: Option<String>,
    /// Folder of the server's keys and its list of nodes.
    #[arg(long, default_value = SERVER_STATE)]
    pub state: PathBuf,
    /// Clients that must be there before the first round [default: the file's, else all of the experiment].
    #[arg(long)]
    pub wait_for: Option<usize>,
    /// What to have on disk of a round that is not over [default: the file's, else auto].
    #[arg(long)]
    pub durability: Option<Durability>,
    /// Write the join string to this file too.
    #[arg(long)]
    pub join_file: Option<PathBuf>,
    /// Address and TCP port of the page, of `/metrics` and of what `fedburn status` asks; port 0 for any. It is not
    /// encrypted, and shows nothing without the token of the server's folder [default: 127.0.0.1:4844, or any port where
    /// that is taken].
    #[arg(long, value_name = "ADDRESS")]
    pub page: Option<SocketAddr>,
    /// Serve no page.
    #[arg(long, conflicts_with = "page")]
    pub no_page: bool,
    /// When the run is over, keep the page until interrupted.
    #[arg(long, conflicts_with = "no_page")]
    pub hold: bool,
    /// The seed, where the file has several.
    #[arg(long)]
    pub seed: Option<u64>,
    /// flex, ndarray, cuda, wgpu or tch; clients use the same unless told otherwise.
    #[arg(long, default_value = "flex")]
    pub backend: BackendName,
    /// Override a field of the file: `client.lr=0.1`. May be repeated.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub overrides: Vec<String>,
    /// Delete earlier results of the seed instead of going on with them.
    #[arg(long)]
    pub fresh: bool,
    /// Print events as JSON lines.
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Print results only.
    #[arg(long)]
    pub quiet: bool,
    /// Folder of data sets [default: $FEDBURN_DATA, else the user's data folder].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Folder of experiment files, `<suite>/<name>.toml`.
    #[arg(long, default_value = "benches/experiments")]
    pub configs: PathBuf,
    /// Folder of results, `<suite>/<name>/seed-<n>`; not that of simulations, whose clients keep their states there.
    #[arg(long, default_value = "target/federations")]
    pub out: PathBuf,
}

/// Arguments of `join`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// What the server printed, `fedburn1:…`, or @FILE with a file that holds it.
    pub join: String,
    /// Which clients of the experiment to be: `3`, `0,1,2` or `0..10` (without the last); all by default.
    #[arg(long)]
    pub clients: Option<String>,
    /// Worker threads, 0 for one a core; does not change results.
    #[arg(long, default_value_t = 0)]
    pub workers: usize,
    /// flex, ndarray, cuda, wgpu or tch [default: the server's, for the same bits].
    #[arg(long)]
    pub backend: Option<BackendName>,
    /// Folder of this node's key and of its clients' states.
    #[arg(long, default_value = NODE_STATE)]
    pub state: PathBuf,
    /// Folder of data sets [default: $FEDBURN_DATA, else the user's data folder].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// A TOML file with what the owner of the data permits; everything where absent.
    #[arg(long)]
    pub policy: Option<PathBuf>,
    /// Seconds for which a server that cannot be reached is tried again.
    #[arg(long, default_value_t = 600)]
    pub patience: u64,
    /// Longest wait between two attempts to reach the server, in seconds.
    #[arg(long, default_value_t = 60)]
    pub longest_wait: u64,
    /// Print events as JSON lines.
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Print nothing but errors.
    #[arg(long)]
    pub quiet: bool,
}

/// `fedburn nodes …`
#[derive(Clone, Debug, Subcommand)]
pub enum NodesCommand {
    /// List the nodes that enrolled or were decided on.
    List {
        /// The server.
        #[command(flatten)]
        server: ServerState,
    },
    /// Let a node take part, also one that was revoked.
    Allow {
        /// Its identity, 52 letters and digits.
        node: String,
        /// The server.
        #[command(flatten)]
        server: ServerState,
    },
    /// Shut a node out; its connections to a running server end within a second.
    Revoke {
        /// Its identity, 52 letters and digits.
        node: String,
        /// The server.
        #[command(flatten)]
        server: ServerState,
    },
}

/// `fedburn ca …`
#[derive(Clone, Debug, Subcommand)]
pub enum CaCommand {
    /// Show the authority and the server's certificate.
    Show {
        /// The server.
        #[command(flatten)]
        server: ServerState,
    },
    /// Make a new certificate for the server, and a new secret for join strings: the old ones admit nobody any more.
    Renew {
        /// The server.
        #[command(flatten)]
        server: ServerState,
    },
}

/// Arguments of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// The run, `suite/name` [default: the one that was started last].
    pub name: Option<String>,
    /// The server.
    #[command(flatten)]
    pub server: ServerState,
}

/// Which server, and how to print.
#[derive(Clone, Debug, Args)]
pub struct ServerState {
    /// Folder of the server's keys and its list of nodes.
    #[arg(long, default_value = SERVER_STATE)]
    pub state: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

const SERVER_STATE: &str = ".fedburn/server";
const NODE_STATE: &str = ".fedburn/node";
