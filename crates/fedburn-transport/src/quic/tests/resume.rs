//! Transfers that are cut off go on where they were.

use fedburn_core::ParamVector;
use fedburn_testkit::schema;

use super::super::blob::{Assembly, Values};
use super::super::client::Downloads;
use super::super::send::Blob;
use super::raw::Raw;
use super::*;
use crate::wire::limits::MAX_CHUNK_LEN;
use crate::wire::{CommitState, Decline, Extensions, Failure, Message, TransferId, UploadBegin};

/// Values of six chunks.
const SIX_CHUNKS: usize = 6 << 20;

#[test]
fn an_upload_that_was_cut_sends_only_what_is_missing() {
    let site = Site::new(schema(&[SIX_CHUNKS]));
    let mut server = site.server();
    let requests = training(&site.schema, 1, &[1]);
    let wanted = expected(requests.clone());
    let values: Vec<f32> = wanted[&ClientId(1)].as_ref().unwrap().iter().map(|bits| f32::from_bits(*bits)).collect();
    let vector = ParamVector::<Flex>::from_host(values, site.schema.clone(), &FlexDevice).unwrap();
    let blob = Blob::of_vectors(vec![vector], MAX_CHUNK_LEN).unwrap();

    let join_string = server.join_string();
    let mut first = Raw::announced(&site, &server, "a", &[1]);
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let offer = first.offer();
        let begin = UploadBegin {
            task: offer.task,
            num_values: SIX_CHUNKS as u64,
            vectors: Vec::new(),
            ext: Extensions::default(),
        };
        let have = |raw: &Raw| match raw.ask(&begin) {
            Ok(Message::UploadGrant(grant)) => grant.have,
            other => panic!("{other:?}"),
        };
        assert_eq!(have(&first).count(), 0);
        for index in [0, 2, 5] {
            let (header, payload) = blob.chunk(offer.task.into(), index).unwrap();
            first.send_chunk(&header, &payload);
        }
        eventually("three chunks are verified", || have(&first).count() == 3);
        // The connection is gone in the middle of the fourth.
        drop(first);

        let joined = join(&join_string, site.node("a"), client_config()).unwrap();
        let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
        let asked = client.next().unwrap().unwrap();
        let before = client.bytes_sent();
        let (id, round, reply) = answer(asked, &EchoPopulation::new(64), &Mutex::default());
        client.reply(id, round, reply).unwrap();
        let sent = client.bytes_sent() - before;
        let chunk = u64::from(MAX_CHUNK_LEN);
        assert!((3 * chunk..3 * chunk + chunk / 2).contains(&sent), "{sent} bytes for three chunks");
        assert_eq!(answers.join().unwrap(), wanted);
    });
}

#[test]
fn a_download_that_was_cut_fetches_only_what_is_missing() {
    let site = Site::new(schema(&[SIX_CHUNKS]));
    let mut server = site.server();
    let requests = training(&site.schema, 1, &[1]);
    let values: Vec<f32> = (0..SIX_CHUNKS).map(|i| i as f32).collect();
    let vector = ParamVector::<Flex>::from_host(values.clone(), site.schema.clone(), &FlexDevice).unwrap();
    let whole = Blob::of_vectors(vec![vector], MAX_CHUNK_LEN).unwrap();
    let mut node = Raw::announced(&site, &server, "a", &[1]);
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let offer = node.offer();
        assert_eq!(offer.model, whole.name());
        // Three chunks came before the connection broke.
        let assembly = Arc::new(Assembly::of_manifest(whole.manifest().clone()).unwrap());
        for index in [1, 2, 4] {
            let (header, payload) = whole.chunk(TransferId::default(), index).unwrap();
            assembly.accept(&header, &[payload]).unwrap();
        }
        let (before, mut partial) = (node.connection.stats().udp_rx.bytes, Some(assembly));
        let downloads = Arc::new(Downloads::default());
        let fetched = node.handle().block_on(async {
            tokio::spawn(downloads.clone().receive(node.connection.clone()));
            downloads.fetch(node.dialer(), &node.connection, &offer.model, &mut partial).await.unwrap()
        });
        assert_eq!(fetched.take(), Values::Plain(vec![values]));
        let (came, chunk) = (node.connection.stats().udp_rx.bytes - before, u64::from(MAX_CHUNK_LEN));
        assert!((3 * chunk..3 * chunk + chunk / 2).contains(&came), "{came} bytes for three chunks");
        let (failure, ext) = (Failure::NoData, Extensions::default());
        node.ask(&Decline { task: offer.task, failure, ext }).unwrap();
        assert_eq!(answers.join().unwrap()[&ClientId(1)], Err(ClientFailure::NoData));
    });
}

#[test]
fn a_server_that_was_killed_gets_the_answer_again_without_new_training() {
    let mut site = Site::new(schema(&[4]));
    let mut server = site.server();
    site.config.listen = server.address();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    let requests = training(&site.schema, 1, &[1]);
    let first = std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests.clone()));
        let (id, round, reply) = answer(client.next().unwrap().unwrap(), &EchoPopulation::new(64), &Mutex::default());
        client.reply(id, round, reply).unwrap();
        answers.join().unwrap()
    });
    // It acknowledged the update and stopped before the round's end.
    drop(server);
    let mut server = site.server();
    server.wait_for(1, LONG, &mut |_| {}).unwrap();
    // Nobody asks the node for work: there is none.
    assert_eq!(exchange(&mut server, requests), first);
}

/// One client answers `requests`; gives what the round got of it.
fn answered_once(
    server: &mut QuicServer<Flex>,
    client: &QuicClient<Flex>,
    requests: &[(ClientId, Request<Flex>)],
) -> BTreeMap<ClientId, Result<Vec<u32>, ClientFailure>> {
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(server, requests.to_vec()));
        let (id, round, reply) = answer(client.next().unwrap().unwrap(), &EchoPopulation::new(64), &Mutex::default());
        client.reply(id, round, reply).unwrap();
        answers.join().unwrap()
    })
}

#[test]
fn a_server_that_keeps_answers_asks_nobody_again_not_even_for_one_who_left() {
    let mut site = Site::new(schema(&[100_000]));
    site.keep_answers = true;
    let mut server = site.server();
    let requests = training(&site.schema, 1, &[1]);
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    let first = answered_once(&mut server, &client, &requests);
    // Nobody says goodbye, and the client never comes back.
    drop(server);
    client.leave();
    drop(client);
    let mut server = site.server();
    assert_eq!(*server.clients(), [echo(1)], "it took part");
    assert_eq!(exchange(&mut server, requests.clone()), first);
    drop(server);
    // Other requests are other tasks.
    let mut server = site.server();
    let other = training(&site.schema, 2, &[1]);
    assert_eq!(exchange(&mut server, other)[&ClientId(1)], Err(ClientFailure::Disconnected));
    server.close_round(RoundIndex(1), &[ClientId(1)]).unwrap();
    server.checkpointed(RoundIndex(1), RoundIndex(0)).unwrap();
    drop(server);
    let server = site.start::<Flex>(FlexDevice, 1);
    assert!(server.clients().is_empty(), "what a checkpoint covers is not kept");
}

#[test]
fn an_acknowledgement_says_what_was_promised() {
    for (keep_answers, promise) in [(false, CommitState::Committed), (true, CommitState::Durable)] {
        let mut site = Site::new(schema(&[3]));
        site.keep_answers = keep_answers;
        let mut server = site.server();
        let mut node = Raw::announced(&site, &server, "a", &[1, 2]);
        let requests = training(&site.schema, 1, &[1, 2]);
        std::thread::scope(|scope| {
            let answers = scope.spawn(|| exchange(&mut server, requests));
            let decline = |task| Decline { task, failure: Failure::NoData, ext: Extensions::default() };
            let first = node.offer().task;
            for _ in 0..2 {
                match node.ask(&decline(first)).unwrap() {
                    Message::CommitAck(ack) => assert_eq!(ack.state, promise),
                    other => panic!("{other:?}"),
                }
            }
            let second = node.offer().task;
            node.ask(&decline(second)).unwrap();
            assert_eq!(answers.join().unwrap()[&ClientId(1)], Err(ClientFailure::NoData));
        });
    }
}

#[test]
fn a_server_whose_disk_fails_ends_its_round_and_goes_on_when_it_is_mended() {
    let mut site = Site::new(schema(&[3]));
    site.keep_answers = true;
    let mut server = site.server();
    site.config.listen = server.address();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    let requests = training(&site.schema, 1, &[1]);
    let disk = fedburn_durable::crash::Watch::new(site.dir.path());
    disk.crash_at(0, fedburn_durable::crash::Ending::Torn);
    std::thread::scope(|scope| {
        let client = &client;
        let working = scope.spawn(move || {
            let asked = client.next().unwrap().unwrap();
            let (id, round, reply) = answer(asked, &EchoPopulation::new(64), &Mutex::default());
            client.reply(id, round, reply).unwrap();
        });
        let failure = exchange(&mut server, requests.clone()).remove(&ClientId(1)).unwrap().unwrap_err();
        assert!(matches!(&failure, ClientFailure::Failed { reason } if reason.contains("start again")), "{failure}");
        let error = server.close_round(RoundIndex(1), &[]).unwrap_err().to_string();
        assert!(error.contains("an answer could not be kept"), "{error}");
        server.close();
        disk.restart().unwrap();
        let mut server = site.server();
        server.wait_for(1, LONG, &mut |_| {}).unwrap();
        // The node was told neither yes nor goodbye: it has the answer, and nobody trains again.
        assert_eq!(exchange(&mut server, requests.clone()), expected(requests.clone()));
        working.join().unwrap();
    });
}
