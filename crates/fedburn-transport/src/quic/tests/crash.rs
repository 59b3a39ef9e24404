//! A server that crashes at each step that it takes on its disk, and goes on.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use fedburn_core::{Aggregate, AggregateError, MeanStrategy, Round, RoundMean, Strategy};
use fedburn_durable::crash::{Ending, Watch};
use fedburn_runtime::{All, CheckpointDir, Server, ServerConfig};
use fedburn_testkit::schema;

use super::*;

struct TheMean;

impl MeanStrategy<Flex> for TheMean {
    fn name(&self) -> &'static str {
        "the_mean"
    }

    fn step(&mut self, _: &Round<'_, Flex>, mean: &RoundMean<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        Ok(mean.params.clone().into())
    }
}

/// From its start to the end of the run, or to a crash. At the end it waits until the node has been told of all that it
/// works on, which is over.
fn life(site: &Site, dir: &Path, busy: &AtomicUsize) -> Result<Vec<u32>, Box<dyn Error>> {
    let checkpoints = CheckpointDir::open(dir.join("checkpoint"))?;
    let found = checkpoints.latest::<Flex>(&site.schema, &FlexDevice)?;
    let resumed = found.as_ref().map_or(RoundIndex(0), |checkpoint| checkpoint.round);
    let files = RunFiles { keep_answers: site.keep_answers, ..RunFiles::new(dir, resumed) };
    let identity = ServerIdentity::open(&site.dir.path().join("server"))?;
    let (config, schema) = (site.config.clone(), site.schema.clone());
    let transport = QuicServer::start(config, identity, site.plan(), schema, FlexDevice, files)?;
    transport.wait_for(CLIENTS.len(), LONG, &mut |_| {})?;
    let config = ServerConfig { eval_every: 0, checkpoint_every: 1, ..ServerConfig::new(ROUNDS) };
    let (strategy, global) = (Strategy::Mean(Box::new(TheMean)), vector(&[0.0; 3], &site.schema, &FlexDevice));
    let server = Server::new(config, transport, strategy, Box::new(All), global, Seed::new(5))?;
    let mut server = server.with_checkpoints(checkpoints, "run");
    if let Some(checkpoint) = found {
        server = server.resume(checkpoint)?;
    }
    let model = server.run(&mut [])?.deployed;
    eventually("the node is idle", || busy.load(Ordering::Relaxed) == 0);
    Ok(model.to_host().into_iter().map(f32::to_bits).collect())
}

/// Whatever step is the last, and whatever it leaves: the run goes on to the same bits, and no client trains for a round
/// twice, be it that the server has its answer or that it sends it again.
fn no_crash_shows(keep_answers: bool, at: impl Fn(u64) -> Option<Ending>) {
    let mut site = Site::new(schema(&[3]));
    let port = site.server().address();
    (site.keep_answers, site.config.listen) = (keep_answers, port);
    let server = site.server();
    let joined = join(&server.join_string(), site.node("node"), client_config()).unwrap();
    let clients: Vec<ClientInfo> = CLIENTS.iter().map(|&k| echo(k)).collect();
    let client = joined.start::<Flex>(&clients, site.schema.clone(), FlexDevice).unwrap();
    drop(server);
    let busy = AtomicUsize::new(0);
    let trained: Mutex<BTreeMap<(ClientId, RoundIndex), u32>> = Mutex::default();
    let case = |name: &str, crash: Option<(u64, Ending)>| {
        let dir = site.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let watch = Watch::new(&dir);
        crash.into_iter().for_each(|(step, ending)| watch.crash_at(step, ending));
        let model = loop {
            match life(&site, &dir, &busy) {
                Ok(model) => break model,
                Err(error) => assert!(watch.has_crashed(), "{name}: {error}"),
            }
            watch.restart().unwrap();
        };
        let times = std::mem::take(&mut *trained.lock().unwrap());
        assert_eq!(times.len() as u64, ROUNDS * CLIENTS.len() as u64, "{name}");
        assert!(times.values().all(|times| *times == 1), "{name}: {times:?}");
        (model, watch.steps())
    };
    let states = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(asked) = client.next().unwrap() {
                    busy.fetch_add(1, Ordering::Relaxed);
                    *trained.lock().unwrap().entry((asked.client, asked.request.round())).or_default() += 1;
                    let (id, round, reply) = answer(asked, &EchoPopulation::new(64), &states);
                    client.reply(id, round, reply).unwrap();
                    busy.fetch_sub(1, Ordering::Relaxed);
                }
            });
        }
        // A case that fails must not wait for the node.
        let _leaves = Leaves(&client);
        let (model, steps) = case("undisturbed", None);
        assert!(steps > 40, "{steps} steps");
        for (step, ending) in (0..steps).filter_map(|step| Some((step, at(step)?))) {
            let name = format!("{ending:?}-{step}");
            assert_eq!(case(&name, Some((step, ending))).0, model, "{name}");
        }
    });
}

struct Leaves<'a>(&'a QuicClient<Flex>);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[test]
fn no_kill_shows_where_answers_are_kept() {
    no_crash_shows(true, |_| Some(Ending::Torn));
}

#[test]
fn no_power_cut_shows_where_answers_are_kept() {
    no_crash_shows(true, |step| step.is_multiple_of(2).then_some(Ending::PowerCut));
}

#[test]
fn no_crash_shows_where_clients_send_again() {
    no_crash_shows(false, |step| match step % 6 {
        0 => Some(Ending::Torn),
        3 => Some(Ending::PowerCut),
        _ => None,
    });
}

const ROUNDS: u64 = 2;
const CLIENTS: [u64; 2] = [1, 2];
