//! Transfers that are cut off go on where they were.

use fedburn_testkit::schema;

use super::super::blob::Blob;
use super::raw::Raw;
use super::*;
use crate::wire::limits::MAX_CHUNK_LEN;
use crate::wire::{Extensions, Message, UploadBegin};

/// Values of six chunks.
const SIX_CHUNKS: usize = 6 << 20;

#[test]
fn an_upload_that_was_cut_sends_only_what_is_missing() {
    let site = Site::new(schema(&[SIX_CHUNKS]));
    let mut server = site.server();
    let requests = training(&site.schema, 1, &[1]);
    let wanted = expected(requests.clone());
    let values: Vec<f32> = wanted[&ClientId(1)].as_ref().unwrap().iter().map(|bits| f32::from_bits(*bits)).collect();
    let blob = Blob::of_vector(values, MAX_CHUNK_LEN).unwrap();

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
