//! A path that loses packets: a pair of virtual cables, the nodes behind it in a namespace of their own, a filter at both
//! ends that drops packets by chance. Needs Linux, root, and the programs `ip` and `nft`.

use std::error::Error;
use std::fs;
use std::process::Command;

use clap::Args;

use super::federation::{Bench, Setup, model_mib};

/// Sends models over a path that loses packets.
#[derive(Args)]
pub struct Loss {
    /// Packets of a hundred that are lost, each way; one round for each.
    #[arg(long, num_args = 1.., default_values_t = [1, 5, 10])]
    percent: Vec<u32>,
    #[arg(long, default_value_t = 20)]
    clients: usize,
    /// MiB of the model.
    #[arg(long, default_value_t = 64)]
    mib: usize,
}

impl Loss {
    /// One round for each share of lost packets.
    pub fn run(&self) -> Result<(), Box<dyn Error>> {
        self.percent.iter().try_for_each(|percent| self.round(*percent))
    }

    fn round(&self, percent: u32) -> Result<(), Box<dyn Error>> {
        let path = Path::lay(percent)?;
        let (values, listen) = (self.mib << 18, "10.213.77.1:0");
        let setup = Setup { listen, within: &["ip", "netns", "exec", SPACE], ..Setup::new(values, self.clients, 4) };
        let mut bench = Bench::start(setup)?;
        bench.connect()?;
        let before = path.bytes()?;
        let took = bench.exchange(1)?.wall.as_secs_f64();
        let wire = path.bytes()? - before;
        let payload = 2.0 * self.clients as f64 * model_mib(values);
        let (Self { clients, mib, .. }, wire) = (self, wire as f64 / f64::from(1 << 20));
        println!(
            "{clients} clients x {mib} MiB down and up, {percent}% lost: {took:.1} s, {:.3} bytes on the wire for each of \
             payload, {} connections broken",
            wire / payload,
            bench.broken()?.len(),
        );
        bench.broken()?.iter().for_each(|line| println!("{line}"));
        bench.end()?;
        Ok(())
    }
}

/// A pair of cables; taken away when it is dropped.
struct Path;

impl Path {
    fn lay(percent: u32) -> Result<Self, Box<dyn Error>> {
        run("ip", &["netns", "add", SPACE])?;
        // From here on it is taken away again, whatever fails.
        let path = Self;
        run("ip", &["link", "add", HERE, "type", "veth", "peer", "name", THERE, "netns", SPACE])?;
        run("ip", &["addr", "add", "10.213.77.1/30", "dev", HERE])?;
        // One packet is one frame: what is dropped is a packet and not a train of them.
        run("ip", &["link", "set", HERE, "gso_max_segs", "1", "up"])?;
        run("ip", &["-n", SPACE, "addr", "add", "10.213.77.2/30", "dev", THERE])?;
        run("ip", &["-n", SPACE, "link", "set", THERE, "gso_max_segs", "1", "up"])?;
        let rules = |device: &str| {
            format!(
                "table netdev fedburn {{ chain arriving {{ type filter hook ingress device {device} priority 0; \
                 meta l4proto udp numgen random mod 100 < {percent} drop; }}; }}"
            )
        };
        run("nft", &[&rules(HERE)])?;
        run("ip", &["netns", "exec", SPACE, "nft", &rules(THERE)])?;
        Ok(path)
    }

    /// Bytes that both ends have sent, lost ones too.
    fn bytes(&self) -> Result<u64, Box<dyn Error>> {
        let read = |what: &str| fs::read_to_string(format!("/sys/class/net/{HERE}/statistics/{what}_bytes"));
        let counted = |text: String| text.trim().parse::<u64>();
        Ok(counted(read("tx")?)? + counted(read("rx")?)?)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        // What is not there any more need not be taken away.
        let _ = run("ip", &["netns", "del", SPACE]);
        let _ = run("ip", &["link", "del", HERE]);
        let _ = run("nft", &["delete table netdev fedburn"]);
    }
}

fn run(program: &str, words: &[&str]) -> Result<(), Box<dyn Error>> {
    let line = format!("{program} {}", words.join(" "));
    let done = Command::new(program).args(words).output();
    let done = done.map_err(|e| format!("`{line}`: {e}; this needs root, iproute2 and nftables"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("`{line}`: {}", String::from_utf8_lossy(&done.stderr).trim()).into()),
    }
}

const SPACE: &str = "fedburn-loss";
const HERE: &str = "fedburn0";
const THERE: &str = "fedburn1";
