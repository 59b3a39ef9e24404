//! Nodes with good certificates that do not keep to the rules: refused with the right code, and no honest round minds.

use fedburn_testkit::schema;

use super::raw::Raw;
use super::*;
use crate::wire::limits::MAX_CHUNK_LEN;
use crate::wire::{
    ChunkHeader, CloseCode, Codec, CommitState, Decline, Extensions, Failure, GetManifest, Hash, Hello, Layout,
    Manifest, Measured, Message, Payload, Refusal, Report, TaskId, TransferId, UploadBegin, UploadCommit,
};

/// Runs one round of an honest node (client 1) and a hostile one (client 2), which does `what`; gives what the round
/// got of the hostile one.
fn round(
    schema: Arc<ParamSchema>,
    what: impl FnOnce(&mut Raw, &Site, crate::wire::TaskOffer),
) -> Result<Vec<u32>, ClientFailure> {
    let mut site = Site::new(schema);
    site.config.reconnect_grace_secs = 0;
    let mut server = site.server();
    let honest = site.spawn(&server, "honest", &[1], FlexDevice);
    let mut hostile = Raw::announced(&site, &server, "hostile", &[2]);
    server.wait_for(2, LONG, &mut |_| {}).unwrap();
    let requests = training(&site.schema, 1, &[1, 2]);
    let wanted = expected(requests.clone());
    let mut answers = std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let offer = hostile.offer();
        what(&mut hostile, &site, offer);
        drop(hostile);
        answers.join().unwrap()
    });
    assert_eq!(answers[&ClientId(1)], wanted[&ClientId(1)], "the honest client's update counts");
    server.close();
    honest.end().unwrap();
    answers.remove(&ClientId(2)).unwrap()
}

fn small() -> Arc<ParamSchema> {
    schema(&[3])
}

/// More than travels inside a message, one chunk.
fn chunked() -> Arc<ParamSchema> {
    schema(&[100_000])
}

fn begin(task: TaskId, num_values: u64) -> UploadBegin {
    UploadBegin { task, num_values, vectors: Vec::new(), ext: Extensions::default() }
}

fn commit(task: TaskId, root: Hash, payload: Payload) -> UploadCommit {
    UploadCommit {
        task,
        root,
        payload,
        num_examples: 1,
        side_scalars: Vec::new(),
        report: Report::default(),
        metrics: Vec::new(),
        ext: Extensions::default(),
    }
}

fn inline(task: TaskId, values: &[f32]) -> UploadCommit {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let root = Manifest::of(Codec::F32, &data, MAX_CHUNK_LEN).unwrap().blob().root;
    commit(task, root, Payload::Inline { vectors: Vec::new(), data: data.into() })
}

fn state(answer: Message) -> CommitState {
    match answer {
        Message::CommitAck(ack) => ack.state,
        other => panic!("{other:?}"),
    }
}

fn refusal(answer: Message) -> Refusal {
    match answer {
        Message::Refused(refused) => refused.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_that_are_no_frame_close_the_connection() {
    let garbage: &[&[u8]] = &[
        &[0xff; 64],
        // A known kind, an oversized body.
        &[0xff, 0xff, 0xff, 0x7f, 0x03, 0x03, 0, 0, 0, 0, 0, 0],
        // A known kind, a body that is none.
        &[1, 0, 0, 0, 0x03, 0x03, 0, 0, 0, 0, 0, 0, 0xff],
        // A frame that ends early.
        &[64, 0, 0, 0, 0x03, 0x03, 0, 0, 0, 0, 0, 0, 1, 2, 3],
    ];
    for bytes in garbage {
        let outcome = round(small(), |node, _, _| {
            node.send_bytes(bytes);
            assert_eq!(node.closed().0, CloseCode::Protocol, "{bytes:?}");
        });
        assert_eq!(outcome, Err(ClientFailure::Disconnected));
    }
}

#[test]
fn messages_that_a_node_may_not_send_close_the_connection() {
    let outcome = round(small(), |node, _, _| {
        let hello = Hello::default();
        assert!(node.ask(&hello).is_err(), "a second greeting");
        assert_eq!(node.closed().0, CloseCode::Protocol);
    });
    assert_eq!(outcome, Err(ClientFailure::Disconnected));
}

#[test]
fn a_chunk_with_another_hash_closes_the_connection() {
    let outcome = round(chunked(), |node, site, offer| {
        assert!(matches!(node.ask(&begin(offer.task, 100_000)), Ok(Message::UploadGrant(_))));
        let payload = vec![7; 400_000];
        let layout = Layout::new(Codec::F32, site.schema.num_bytes(), MAX_CHUNK_LEN).unwrap();
        let mut header = ChunkHeader::of(offer.task.into(), &layout, 0, &payload).unwrap();
        header.hash.0[0] ^= 1;
        node.send_chunk(&header, &payload);
        let (code, reason) = node.closed();
        assert_eq!(code, CloseCode::Protocol);
        assert!(reason.contains("hash"), "{reason}");
    });
    assert_eq!(outcome, Err(ClientFailure::Disconnected));
}

#[test]
fn a_chunk_of_another_length_closes_the_connection() {
    let outcome = round(chunked(), |node, _, offer| {
        assert!(matches!(node.ask(&begin(offer.task, 100_000)), Ok(Message::UploadGrant(_))));
        let payload = vec![7; 400];
        let layout = Layout::new(Codec::F32, 400, MAX_CHUNK_LEN).unwrap();
        node.send_chunk(&ChunkHeader::of(offer.task.into(), &layout, 0, &payload).unwrap(), &payload);
        assert_eq!(node.closed().0, CloseCode::Protocol);
    });
    assert_eq!(outcome, Err(ClientFailure::Disconnected));
}

#[test]
fn an_update_of_another_length_is_rejected() {
    let outcome = round(small(), |node, _, offer| {
        assert_eq!(refusal(node.ask(&begin(offer.task, 4)).unwrap()), Refusal::Invalid);
        let answer = state(node.ask(&inline(offer.task, &[1.0, 2.0, 3.0, 4.0])).unwrap());
        assert!(matches!(answer, CommitState::Rejected { .. }), "{answer:?}");
        assert!(node.is_open());
    });
    assert!(matches!(outcome, Err(ClientFailure::Malformed { .. })), "{outcome:?}");
}

#[test]
fn names_of_vectors_get_no_memory() {
    // 65 vectors are 26 MB, more than all the memory for uploads; so are two.
    let names = |vectors: usize| (0..vectors).map(|i| format!("{i:02}")).collect::<Vec<_>>();
    let mut site = Site::new(chunked());
    site.config.upload_memory_mib = 1;
    let mut server = site.server();
    let mut node = Raw::announced(&site, &server, "hostile", &[2]);
    let watch = server.watch();
    let requests = training(&site.schema, 1, &[2]);
    let answers = std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let task = node.offer().task;
        for vectors in [2, 64] {
            let begin = UploadBegin { vectors: names(vectors), ..begin(task, 100_000) };
            assert_eq!(refusal(node.ask(&begin).unwrap()), Refusal::Invalid, "{vectors} vectors");
            assert_eq!(watch.status().upload_memory.used, 0);
        }
        // The model and one more are taken.
        let begin = UploadBegin { vectors: names(1), ..begin(task, 100_000) };
        assert!(matches!(node.ask(&begin), Ok(Message::UploadGrant(_))));
        let payload = Payload::Inline { vectors: names(64), data: Vec::new().into() };
        assert!(matches!(
            state(node.ask(&commit(task, Hash([9; 32]), payload)).unwrap()),
            CommitState::Rejected { .. }
        ));
        answers.join().unwrap()
    });
    assert!(matches!(&answers[&ClientId(2)], Err(ClientFailure::Malformed { .. })), "{answers:?}");
}

#[test]
fn an_update_with_another_root_is_rejected() {
    let outcome = round(small(), |node, _, offer| {
        let honest = inline(offer.task, &[1.0, 2.0, 3.0]);
        let answer = state(node.ask(&UploadCommit { root: Hash([9; 32]), ..honest }).unwrap());
        assert!(matches!(answer, CommitState::Rejected { .. }), "{answer:?}");
    });
    assert!(matches!(outcome, Err(ClientFailure::Malformed { .. })), "{outcome:?}");
}

#[test]
fn an_update_counts_once_however_often_it_comes() {
    let outcome = round(small(), |node, _, offer| {
        let update = inline(offer.task, &[1.0, 2.0, 3.0]);
        // The exchange may be over after the first: then a repetition is told that the task is.
        let over = |answer: Message| match answer {
            Message::CommitAck(ack) => Some(ack.state),
            other => {
                assert_eq!(refusal(other), Refusal::UnknownTask);
                None
            }
        };
        assert_eq!(over(node.ask(&update).unwrap()), Some(CommitState::Committed));
        assert!(matches!(over(node.ask(&update).unwrap()), Some(CommitState::Committed) | None));
        let other = inline(offer.task, &[9.0, 9.0, 9.0]);
        assert!(matches!(over(node.ask(&other).unwrap()), Some(CommitState::Rejected { .. }) | None));
        assert!(node.is_open());
    });
    assert_eq!(outcome, Ok([1.0f32, 2.0, 3.0].map(f32::to_bits).to_vec()));
}

#[test]
fn tasks_of_others_cannot_be_answered() {
    let site = Site::new(small());
    let mut server = site.server();
    let mut asked = Raw::announced(&site, &server, "asked", &[1]);
    let thief = Raw::announced(&site, &server, "thief", &[2]);
    let requests = training(&site.schema, 1, &[1]);
    let answers = std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let task = asked.offer().task;
        for task in [task, TaskId([8; 16])] {
            assert_eq!(refusal(thief.ask(&inline(task, &[9.0; 3])).unwrap()), Refusal::UnknownTask);
            assert_eq!(refusal(thief.ask(&begin(task, 3)).unwrap()), Refusal::UnknownTask);
            let (failure, ext) = (Failure::NoData, Extensions::default());
            let declined = state(thief.ask(&Decline { task, failure, ext }).unwrap());
            assert_eq!(declined, CommitState::Superseded);
            let measured = Measured { task, ..Measured::default() };
            assert_eq!(state(thief.ask(&measured).unwrap()), CommitState::Superseded);
        }
        // A chunk without a slot cannot even be sent: there is no stream to send it on.
        let payload = vec![0; 12];
        let layout = Layout::new(Codec::F32, 12, MAX_CHUNK_LEN).unwrap();
        let header = ChunkHeader::of(TransferId(task.0), &layout, 0, &payload).unwrap();
        let sent = thief.handle().block_on(async {
            tokio::time::timeout(Duration::from_millis(50), thief.connection.open_uni()).await.is_ok()
        });
        assert!(!sent, "no credit for {header:?}");
        assert_eq!(state(asked.ask(&inline(task, &[1.0; 3])).unwrap()), CommitState::Committed);
        answers.join().unwrap()
    });
    assert_eq!(answers[&ClientId(1)], Ok(vec![1.0f32.to_bits(); 3]));
}

#[test]
fn a_measurement_is_no_update() {
    let outcome = round(small(), |node, _, offer| {
        let measured = Measured { task: offer.task, ..Measured::default() };
        assert!(matches!(state(node.ask(&measured).unwrap()), CommitState::Rejected { .. }));
    });
    assert!(matches!(outcome, Err(ClientFailure::Malformed { .. })), "{outcome:?}");
}

#[test]
fn a_flood_of_requests_is_slowed_and_the_round_goes_on() {
    let outcome = round(small(), |node, _, offer| {
        let began = std::time::Instant::now();
        // The burst and what a task brings, and a second's worth more.
        for _ in 0..(200 + 16 + 50) {
            let asked = GetManifest { root: Hash([1; 32]), ext: Extensions::default() };
            assert_eq!(refusal(node.ask(&asked).unwrap()), Refusal::UnknownBlob);
        }
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        let failure = Failure::Refused { reason: "enough".to_owned() };
        let decline = Decline { task: offer.task, failure, ext: Extensions::default() };
        assert_eq!(state(node.ask(&decline).unwrap()), CommitState::Committed);
    });
    assert_eq!(outcome, Err(ClientFailure::Refused { reason: "enough".to_owned() }));
}

#[test]
fn who_lost_its_slot_waits_for_another_before_it_sends_on() {
    let mut site = Site::new(chunked());
    site.config.upload_slots = 1;
    let mut server = site.server();
    let mut idle = Raw::announced(&site, &server, "idle", &[2]);
    let mut other = Raw::announced(&site, &server, "other", &[1]);
    let requests = training(&site.schema, 1, &[1, 2]);
    let payload = vec![0; 400_000];
    let layout = Layout::new(Codec::F32, 400_000, MAX_CHUNK_LEN).unwrap();
    let root = Manifest::of(Codec::F32, &payload, MAX_CHUNK_LEN).unwrap().blob().root;
    let send = |node: &Raw, task: TaskId| {
        node.send_chunk(&ChunkHeader::of(task.into(), &layout, 0, &payload).unwrap(), &payload);
        assert_eq!(state(node.ask(&commit(task, root, Payload::Chunks)).unwrap()), CommitState::Committed);
    };
    let order = std::thread::scope(|scope| {
        let order = scope.spawn(|| server.exchange(requests, LONG).map(|outcome| outcome.client.0).collect::<Vec<_>>());
        let (idle_task, other_task) = (idle.offer().task, other.offer().task);
        assert!(matches!(idle.ask(&begin(idle_task, 100_000)), Ok(Message::UploadGrant(_))));
        // Answered once the idle node has lost the only slot.
        assert!(matches!(other.ask(&begin(other_task, 100_000)), Ok(Message::UploadGrant(_))));
        let (idle, send) = (&idle, &send);
        let sending = scope.spawn(move || send(idle, idle_task));
        // As often as it takes for a chunk to come that nobody holds back, and no longer than who sends nothing keeps a slot.
        for _ in 0..10 {
            let asked = GetManifest { root: Hash([1; 32]), ext: Extensions::default() };
            assert_eq!(refusal(other.ask(&asked).unwrap()), Refusal::UnknownBlob);
        }
        send(&other, other_task);
        sending.join().unwrap();
        order.join().unwrap()
    });
    assert_eq!(order, [1, 2]);
}

#[test]
fn who_waits_for_a_slot_with_a_task_that_ends_leaves_it_to_others() {
    let mut site = Site::new(chunked());
    site.config.upload_slots = 1;
    let mut server = site.server();
    let watch = server.watch();
    let mut nodes = [1, 2, 3].map(|k| Raw::announced(&site, &server, &format!("node{k}"), &[k]));
    let requests = training(&site.schema, 1, &[1, 2, 3]);
    let (payload, layout) = (vec![0; 400_000], Layout::new(Codec::F32, 400_000, MAX_CHUNK_LEN).unwrap());
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let [idle, other, last] = nodes.each_mut().map(|node| node.offer().task);
        assert!(matches!(nodes[0].ask(&begin(idle, 100_000)), Ok(Message::UploadGrant(_))));
        // Answered once the idle node has lost the only slot; then its chunk waits for one.
        assert!(matches!(nodes[1].ask(&begin(other, 100_000)), Ok(Message::UploadGrant(_))));
        nodes[0].begin_chunk(&ChunkHeader::of(idle.into(), &layout, 0, &payload).unwrap());
        for (node, task) in nodes.iter().zip([idle, other]) {
            let decline = Decline { task, failure: Failure::NoData, ext: Extensions::default() };
            assert_eq!(state(node.ask(&decline).unwrap()), CommitState::Committed);
        }
        eventually("the slot is free", || watch.status().uploads.used == 0);
        assert!(matches!(nodes[2].ask(&begin(last, 100_000)), Ok(Message::UploadGrant(_))));
        let decline = Decline { task: last, failure: Failure::NoData, ext: Extensions::default() };
        assert_eq!(state(nodes[2].ask(&decline).unwrap()), CommitState::Committed);
        answers.join().unwrap();
    });
}

#[test]
fn a_task_that_is_begun_many_times_has_room_once() {
    let mut site = Site::new(chunked());
    site.config.upload_slots = 1;
    let mut server = site.server();
    let watch = server.watch();
    let mut holder = Raw::announced(&site, &server, "holder", &[1]);
    let mut greedy = Raw::announced(&site, &server, "greedy", &[2]);
    let requests = training(&site.schema, 1, &[1, 2]);
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let (held, task) = (holder.offer().task, greedy.offer().task);
        assert!(matches!(holder.ask(&begin(held, 100_000)), Ok(Message::UploadGrant(_))));
        let one = watch.status().upload_memory.used;
        let question = begin(task, 100_000);
        let (first, second) = (greedy.asking(&question), greedy.asking(&question));
        let told = greedy.handle().block_on(async {
            tokio::select! {
                answer = first => answer,
                answer = second => answer,
            }
        });
        assert!(matches!(told, Ok(Message::Busy(_))), "{told:?}");
        assert!(watch.status().upload_memory.used <= 2 * one);
        for (node, task) in [(&holder, held), (&greedy, task)] {
            let decline = Decline { task, failure: Failure::NoData, ext: Extensions::default() };
            assert_eq!(state(node.ask(&decline).unwrap()), CommitState::Committed);
        }
        answers.join().unwrap();
    });
}

#[test]
fn who_holds_a_slot_and_sends_nothing_is_cut_off_and_others_have_their_turn() {
    let mut site = Site::new(chunked());
    (site.config.upload_slots, site.config.progress_timeout_secs, site.config.reconnect_grace_secs) = (1, 1, 0);
    let mut server = site.server();
    let mut idle = Raw::announced(&site, &server, "idle", &[2]);
    let mut waiting = Raw::announced(&site, &server, "waiting", &[1]);
    let requests = training(&site.schema, 1, &[1, 2]);
    let answers = std::thread::scope(|scope| {
        let answers = scope.spawn(|| exchange(&mut server, requests));
        let task = idle.offer().task;
        assert!(matches!(idle.ask(&begin(task, 100_000)), Ok(Message::UploadGrant(_))));
        let task = waiting.offer().task;
        // Answered when the slot is free, which it is when the idle node is cut off.
        assert!(matches!(waiting.ask(&begin(task, 100_000)), Ok(Message::UploadGrant(_))));
        assert_eq!(idle.closed().0, CloseCode::Slow);
        let payload = vec![0; 400_000];
        let layout = Layout::new(Codec::F32, 400_000, MAX_CHUNK_LEN).unwrap();
        let header = ChunkHeader::of(task.into(), &layout, 0, &payload).unwrap();
        waiting.send_chunk(&header, &payload);
        let root = Manifest::of(Codec::F32, &payload, MAX_CHUNK_LEN).unwrap().blob().root;
        assert_eq!(state(waiting.ask(&commit(task, root, Payload::Chunks)).unwrap()), CommitState::Committed);
        answers.join().unwrap()
    });
    assert_eq!(answers[&ClientId(1)], Ok(vec![0; 100_000]));
    assert_eq!(answers[&ClientId(2)], Err(ClientFailure::Disconnected));
}
