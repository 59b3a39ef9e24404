//! Honest nodes: the transport's laws, restarts, evaluations, side information.

use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{ClientReport, Codec, CompressionConfig, LocalUpdate, Mean, Metrics, ParamVector};
use fedburn_testkit::{compression_suite, schema, transport_suite, transport_suite_schema};

use super::raw::Raw;
use super::*;
use crate::wire::{CloseCode, Message};

/// A server with its nodes, as one transport.
struct Federation<B: Backend> {
    _site: Site,
    server: Option<QuicServer<B>>,
    nodes: Vec<Node>,
}

impl<B: Backend> Federation<B> {
    fn new(population: &EchoPopulation, device: &B::Device) -> Self {
        let site = Site::new(transport_suite_schema());
        let server = site.start::<B>(device.clone(), 0);
        let ids: Vec<u64> = Population::<B>::clients(population).iter().map(|info| info.id.0).collect();
        let of_node = |node: u64| ids.iter().copied().filter(|k| k % 3 == node).collect::<Vec<_>>();
        let nodes = (0..3).map(|n| site.spawn(&server, &format!("node{n}"), &of_node(n), device.clone())).collect();
        server.wait_for(ids.len(), LONG, &mut |_| {}).unwrap();
        Self { _site: site, server: Some(server), nodes }
    }

    fn server(&mut self) -> &mut QuicServer<B> {
        self.server.as_mut().unwrap()
    }
}

impl<B: Backend> ServerTransport<B> for Federation<B> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.server.as_ref().unwrap().clients()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.server().wait(timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        self.server().exchange(requests, timeout)
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.server().close_round(round, included)
    }

    fn checkpointed(&mut self, round: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        self.server().checkpointed(round, oldest)
    }
}

impl<B: Backend> Drop for Federation<B> {
    fn drop(&mut self) {
        self.server.take().unwrap().close();
        let ends: Vec<_> = self.nodes.drain(..).map(Node::end).collect();
        if !std::thread::panicking() {
            ends.into_iter().for_each(|end| end.expect("a node works until goodbye"));
        }
    }
}

#[test]
fn the_laws_hold_on_flex() {
    transport_suite::<Flex, _>(|population| Federation::new(&population, &FlexDevice), &FlexDevice);
}

#[test]
fn the_laws_hold_on_ndarray() {
    let device = NdArrayDevice::Cpu;
    transport_suite::<NdArray, _>(|population| Federation::new(&population, &NdArrayDevice::Cpu), &device);
}

#[test]
fn codecs_make_the_same_bits_as_without_a_network() {
    compression_suite::<Flex, _>(|population| Federation::new(&population, &FlexDevice), &FlexDevice);
    let device = NdArrayDevice::Cpu;
    compression_suite::<NdArray, _>(|population| Federation::new(&population, &NdArrayDevice::Cpu), &device);
}

#[test]
fn large_models_travel_in_chunks_bit_for_bit() {
    // Two and a half chunks.
    let site = Site::new(schema(&[2_621_440]));
    let mut server = site.server();
    let nodes = [site.spawn(&server, "a", &[1, 2], FlexDevice), site.spawn(&server, "b", &[3], FlexDevice)];
    server.wait_for(3, LONG, &mut |_| {}).unwrap();
    let requests = training(&site.schema, 1, &[1, 2, 3]);
    assert_eq!(exchange(&mut server, requests.clone()), expected(requests));
    server.close();
    nodes.into_iter().for_each(|node| node.end().unwrap());
}

/// The requests of [`training`], whose models and updates go through codecs.
fn compressed(schema: &Arc<ParamSchema>, clients: &[u64], up: Codec, down: Codec) -> Vec<(ClientId, Request<Flex>)> {
    let mut requests = training(schema, 1, clients);
    let mut sent = None;
    for (_, request) in &mut requests {
        let Request::Train(task) = request else { panic!("asked to train") };
        let through = || task.global.through(down, Seed::new(3)).unwrap();
        task.global = sent.get_or_insert_with(through).clone();
        task.compression = CompressionConfig { up, down, ..Default::default() };
    }
    requests
}

#[test]
fn large_models_and_updates_in_codecs_travel_in_chunks_bit_for_bit() {
    // Half precision makes two chunks of it, blocks of eight bits more than one.
    let site = Site::new(schema(&[4_300_000]));
    let mut server = site.server();
    let node = site.spawn(&server, "a", &[1, 2], FlexDevice);
    server.wait_for(2, LONG, &mut |_| {}).unwrap();
    let requests = compressed(&site.schema, &[1, 2], Codec::Int8 {}, Codec::F16 {});
    assert_eq!(exchange(&mut server, requests.clone()), expected(requests));
    server.close();
    node.end().unwrap();
}

#[test]
fn a_node_that_does_not_know_a_codec_is_told_so_and_left_out() {
    let site = Site::new(schema(&[4]));
    let mut server = site.server();
    let node = site.spawn(&server, "new", &[1], FlexDevice);
    let old = Raw::greeting(&site, &server, "old", 0b1);
    assert!(matches!(old.ask(&old.announcement(&site, &[2, 3])), Ok(Message::Announced(_))));
    server.wait_for(3, LONG, &mut |_| {}).unwrap();
    let requests = |up| compressed(&site.schema, &[1, 2, 3], up, Codec::F16 {});
    let without = |mut answers: BTreeMap<ClientId, _>| {
        (answers.remove(&ClientId(1)), answers.into_values().collect::<Vec<Result<_, _>>>())
    };
    let (known, left_out) = without(exchange(&mut server, requests(Codec::Int8 {})));
    assert_eq!(known, without(expected(requests(Codec::Int8 {}))).0, "the others go on");
    for failure in left_out {
        let reason = failure.unwrap_err().to_string();
        assert!(reason.contains("int8") && reason.contains("f16"), "{reason}");
    }
    let (code, reason) = old.closed();
    assert!(code == CloseCode::Version && reason.contains("int8"), "{code:?}: {reason}");
    assert_eq!(server.clients().len(), 1, "its clients are gone");
    server.close();
    node.end().unwrap();
}

#[test]
fn side_information_travels_beside_an_update_in_a_codec() {
    let site = Site::new(schema(&[3, 2]));
    let mut server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    let mut requests = compressed(&site.schema, &[1], Codec::Int4 {}, Codec::Bf16 {});
    let mut side = SideInfo::default();
    side.vectors.insert("control".into(), vector(&[0.1, -0.2, 1e-30, 0.0, 5.0], &site.schema, &FlexDevice));
    if let Request::Train(task) = &mut requests[0].1 {
        task.side = side.clone();
    }
    let (sent, outcomes): (_, Vec<_>) = std::thread::scope(|scope| {
        let outcomes = scope.spawn(|| server.exchange(requests, LONG).collect());
        let asked = client.next().unwrap().unwrap();
        let Request::Train(task) = &asked.request else { panic!("asked to train") };
        assert_same_side(&task.side, &side);
        let (id, round, reply) = answer(asked, &EchoPopulation::new(64), &Mutex::default());
        let Ok(Reply::Trained(mut update)) = reply else { panic!("{reply:?}") };
        update.side = side.clone();
        client.reply(id, round, Ok(Reply::Trained(update.clone()))).unwrap();
        (update, outcomes.join().unwrap())
    });
    let Ok(Reply::Trained(got)) = &outcomes[0].reply else { panic!("{outcomes:?}") };
    assert_eq!((host_bits(&got.params), got.params.encoded()), (host_bits(&sent.params), sent.params.encoded()));
    assert_same_side(&got.side, &side);
}

#[test]
fn an_update_that_is_not_written_as_asked_is_a_failure_and_no_breach() {
    let site = Site::new(schema(&[4]));
    let mut server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    let requests = compressed(&site.schema, &[1], Codec::Int8 {}, Codec::F32 {});
    let answers = std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let mut asked = client.next().unwrap().unwrap();
        if let Request::Train(task) = &mut asked.request {
            task.compression = CompressionConfig::default();
        }
        let (id, round, reply) = answer(asked, &EchoPopulation::new(64), &Mutex::default());
        client.reply(id, round, reply).unwrap();
        answers.join().unwrap()
    });
    let reason = answers[&ClientId(1)].as_ref().unwrap_err().to_string();
    assert!(reason.contains("not written as int8"), "{reason}");
}

#[test]
fn a_server_that_restarts_asks_the_same_and_the_nodes_go_on() {
    let site = Site::new(schema(&[4]));
    let (site, mut server) = fixed_port(site);
    let node = site.spawn(&server, "a", &[1, 2], FlexDevice);
    server.wait_for(2, LONG, &mut |_| {}).unwrap();
    exchange(&mut server, training(&site.schema, 1, &[1, 2]));
    server.close_round(RoundIndex(1), &[ClientId(1)]).unwrap();
    let undisturbed = exchange(&mut server, training(&site.schema, 2, &[1, 2]));
    server.close_round(RoundIndex(2), &[ClientId(1), ClientId(2)]).unwrap();
    // It stops without a word after round 1 was its last checkpoint.
    drop(server);

    let mut server = site.start::<Flex>(FlexDevice, 1);
    server.wait_for(2, LONG, &mut |_| {}).unwrap();
    let repeated = exchange(&mut server, training(&site.schema, 2, &[1, 2]));
    assert_eq!(repeated, undisturbed, "the state of round 2 that was dropped does not count");
    server.close();
    node.end().unwrap();
}

/// The site with the port that its first server was given, so that a second one has it too.
fn fixed_port(mut site: Site) -> (Site, QuicServer<Flex>) {
    let server = site.server();
    site.config.listen = server.address();
    (site, server)
}

#[test]
fn a_node_that_dies_is_asked_again_on_its_return() {
    let site = Site::new(schema(&[4]));
    let mut server = site.server();
    let join_string = server.join_string();
    let clients = [echo(1)];
    let first = join(&join_string, site.node("a"), client_config()).unwrap();
    let first = first.start::<Flex>(&clients, site.schema.clone(), FlexDevice).unwrap();
    let requests = training(&site.schema, 1, &[1]);
    let wanted = expected(requests.clone());
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        // It takes the task and dies with it.
        let asked = first.next().unwrap().unwrap();
        assert_eq!(asked.client, ClientId(1));
        drop(first);
        let again = join(&join_string, site.node("a"), client_config()).unwrap();
        let again = again.start::<Flex>(&clients, site.schema.clone(), FlexDevice).unwrap();
        let (id, round, reply) = answer(again.next().unwrap().unwrap(), &EchoPopulation::new(64), &Mutex::default());
        again.reply(id, round, reply).unwrap();
        assert_eq!(answers.join().unwrap(), wanted);
    });
}

#[test]
fn a_node_that_stays_away_fails_its_tasks() {
    let mut site = Site::new(schema(&[4]));
    site.config.reconnect_grace_secs = 0;
    let mut server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    let answers = std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, training(&site.schema, 1, &[1])));
        client.next().unwrap().unwrap();
        drop(client);
        answers.join().unwrap()
    });
    assert_eq!(answers[&ClientId(1)], Err(ClientFailure::Disconnected));
    assert!(server.clients().is_empty(), "its clients are gone");
}

#[test]
fn no_two_nodes_are_one_client() {
    let site = Site::new(schema(&[4]));
    let server = site.server();
    let claim = |name: &str, ids: &[u64]| {
        let joined = join(&server.join_string(), site.node(name), client_config()).unwrap();
        let clients: Vec<_> = ids.iter().map(|&k| echo(k)).collect();
        joined.start::<Flex>(&clients, site.schema.clone(), FlexDevice)
    };
    let first = claim("a", &[1, 2]).unwrap();
    let refused = claim("b", &[2, 3]).err().unwrap().to_string();
    assert!(refused.contains("client 2"), "{refused}");
    assert_eq!(server.clients().len(), 2, "a refused node takes nothing");
    assert!(claim("b", &[3]).is_ok());
    drop(first);
}

#[test]
fn other_plans_and_models_are_refused() {
    let site = Site::new(schema(&[4]));
    let server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    assert_eq!(*joined.plan(), site.plan());
    let refused = joined.start::<Flex>(&[echo(1)], schema(&[5]), FlexDevice).err().unwrap().to_string();
    assert!(refused.contains("tensors"), "{refused}");

    let mut joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    joined.change_plan_hash();
    let refused = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).err().unwrap().to_string();
    assert!(refused.contains("plan"), "{refused}");
}

#[test]
fn side_information_reports_and_metrics_come_and_go_bit_for_bit() {
    let site = Site::new(schema(&[3, 2]));
    let mut server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    let odd = [f32::NAN, -0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY, 1.5];
    let odd_vector: ParamVector<Flex> = vector(&odd, &site.schema, &FlexDevice);
    let mut side = SideInfo::default();
    side.vectors.insert("control".into(), odd_vector.clone());
    side.vectors.insert("zeros".into(), ParamVector::zeros(site.schema.clone(), &FlexDevice));
    side.scalars.insert("rate".into(), f64::from_bits(0x7ff8_0000_0000_0123));
    let reports = Reports { class_counts: true, accumulation: false, steps: true };
    let mut requests = training(&site.schema, 1, &[1]);
    if let Request::Train(task) = &mut requests[0].1 {
        (task.side, task.reports) = (side.clone(), reports);
    }
    let sent = LocalUpdate {
        params: odd_vector,
        num_examples: u64::MAX,
        side: side.clone(),
        report: ClientReport { class_counts: Some(vec![1, 0, u64::MAX]), accumulation: Some(-0.0), steps: Some(3) },
        metrics: Metrics::new().with("loss", Mean::from_sum(f64::NAN, 3.0)).with("acc", Mean::from_sum(0.1, 3.0)),
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let outcomes = scope.spawn(|| server.exchange(requests, LONG).collect());
        let asked = client.next().unwrap().unwrap();
        let Request::Train(task) = &asked.request else { panic!("asked to train") };
        assert_eq!(task.reports, reports);
        assert_same_side(&task.side, &side);
        client.reply(asked.client, RoundIndex(1), Ok(Reply::Trained(sent.clone()))).unwrap();
        outcomes.join().unwrap()
    });
    let Ok(Reply::Trained(got)) = &outcomes[0].reply else { panic!("{outcomes:?}") };
    assert_eq!(host_bits(&got.params), odd.map(f32::to_bits));
    assert_same_side(&got.side, &side);
    assert_eq!((got.num_examples, &got.report), (sent.num_examples, &sent.report));
    assert_eq!(format!("{:?}", got.metrics), format!("{:?}", sent.metrics));
}

fn host_bits(vector: &ParamVector<Flex>) -> Vec<u32> {
    vector.to_host().into_iter().map(f32::to_bits).collect()
}

fn assert_same_side(a: &SideInfo<Flex>, b: &SideInfo<Flex>) {
    let vectors =
        |side: &SideInfo<Flex>| side.vectors.iter().map(|(n, v)| (n.clone(), host_bits(v))).collect::<Vec<_>>();
    let scalars =
        |side: &SideInfo<Flex>| side.scalars.iter().map(|(n, v)| (n.clone(), v.to_bits())).collect::<Vec<_>>();
    assert_eq!((vectors(a), scalars(a)), (vectors(b), scalars(b)));
}
