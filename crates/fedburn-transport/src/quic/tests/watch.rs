//! What a server tells of itself: exact where bytes are counted, and the same whoever asks when.

use fedburn_testkit::schema;

use super::raw::Raw;
use super::*;

#[test]
fn payload_is_counted_to_the_byte_and_everything_is_given_back() {
    // One model that fits a message, and one of three chunks, the last of them short.
    for num_values in [5_000, (2 << 20) + 5] {
        let site = Site::new(schema(&[num_values]));
        let mut server = site.server();
        let watch = server.watch();
        assert_eq!((watch.status().connected, watch.status().payload), (0, Traffic::default()));
        let nodes = [site.spawn(&server, "a", &[1, 2, 5], FlexDevice), site.spawn(&server, "b", &[3], FlexDevice)];
        server.wait_for(4, LONG, &mut |_| {}).unwrap();
        let before = watch.status().payload;
        assert_eq!(exchange(&mut server, training(&site.schema, 1, &[1, 2, 3, 5])).len(), 4);

        let status = watch.status();
        let bytes = 4 * num_values as u64;
        let payload = Traffic { up: status.payload.up - before.up, down: status.payload.down - before.down };
        assert_eq!(payload, Traffic { up: 4 * bytes, down: 2 * bytes }, "each node gets the model once");
        assert!(status.wire.up > payload.up && status.wire.down > payload.down, "{:?}", status.wire);
        assert!(status.wire.up < 3 * payload.up + (1 << 20), "{:?}", status.wire);
        assert_eq!((status.connected, status.away, status.clients), (2, 0, 4));
        let mut clients: Vec<_> = status.nodes.iter().map(|node| (&*node.clients, node.num_clients)).collect();
        clients.sort_unstable();
        assert_eq!(clients, [("1-2, 5", 3), ("3", 1)]);
        assert!(status.nodes.iter().all(|n| n.address.is_some() && n.software.starts_with("fedburn ")));
        assert_eq!((status.uploads.used, status.uploads.all), (0, site.config.upload_slots as u64));
        assert_eq!((status.upload_memory.used, status.upload_memory.all), (0, site.config.upload_memory_mib << 20));
        eventually("downloads give their slots back", || watch.status().downloads.used == 0);
        // To enrol, for the plan, to work.
        assert_eq!((status.handshakes, status.handshakes_failed), (6, 0));

        server.close_round(RoundIndex(1), &[ClientId(1)]).unwrap();
        assert_eq!(watch.status().records, 1);
        server.close();
        nodes.into_iter().for_each(|node| node.end().unwrap());
        eventually("everybody has left", || watch.status().connections == 0);
        assert!(watch.status().wire.up >= status.wire.up, "what ended still counts");
    }
}

#[test]
fn why_the_server_closed_connections_is_told() {
    let site = Site::new(schema(&[3]));
    let server = site.server();
    let watch = server.watch();
    let node = site.spawn(&server, "a", &[0], FlexDevice);
    server.wait_for(1, LONG, &mut |_| {}).unwrap();
    assert_eq!(watch.status().closed.get("revoked"), None);
    server.nodes().revoke(server.nodes().list()[0].node).unwrap();
    assert!(node.end().is_err());
    eventually("the node is gone", || watch.status().connected + watch.status().away == 0);
    assert!(watch.status().closed["revoked"] >= 1, "{:?}", watch.status().closed);
}

#[test]
fn a_server_that_is_asked_to_end_gives_up_what_does_not_end() {
    let mut site = Site::new(schema(&[3]));
    site.config.drain_secs = 1;
    let mut server = site.server();
    let watch = server.watch();
    // A node that is asked and never answers.
    let silent = Raw::announced(&site, &server, "a", &[1]);
    watch.drain();
    let failed = exchange(&mut server, training(&site.schema, 1, &[1]));
    assert!(matches!(&failed[&ClientId(1)], Err(ClientFailure::Failed { reason }) if reason.contains("asked to end")));
    assert!(watch.gave_up());
    let error = server.close_round(RoundIndex(1), &[]).unwrap_err();
    assert!(matches!(error, TransportError::Closed { .. }), "nothing of the round counts: {error}");
    drop(silent);
    server.close();
}

#[test]
fn an_end_that_was_asked_for_is_seen_before_an_exchange_and_where_nobody_is_there() {
    let mut site = Site::new(schema(&[3]));
    site.config.drain_secs = 0;
    let mut server = site.server();
    let watch = server.watch();
    assert!(server.wait(Duration::ZERO).is_ok(), "nobody came, and that is all");
    watch.drain();
    // As long as a round may last, were nobody asked.
    let error = server.wait(Duration::from_secs(86_400)).unwrap_err();
    assert!(matches!(&error, TransportError::Closed { reason } if reason.contains("asked to end")), "{error}");
    let silent = Raw::announced(&site, &server, "a", &[1]);
    server.wait_for(1, LONG, &mut |_| {}).unwrap();
    let failed = exchange(&mut server, training(&site.schema, 1, &[1, 2]));
    let ended = |reply: &Result<_, _>| matches!(reply, Err(ClientFailure::Failed { reason }) if reason.contains("end"));
    assert!(ended(&failed[&ClientId(1)]), "{failed:?}");
    assert_eq!(failed[&ClientId(2)], Err(ClientFailure::Disconnected));
    drop(silent);
    server.close();
}

#[test]
fn nobody_waits_for_a_node_that_was_killed() {
    let mut site = Site::new(schema(&[3]));
    // For ever, as far as a test is concerned.
    site.config.drain_secs = 86_400;
    let server = site.server();
    let killed = Raw::announced(&site, &server, "a", &[1]);
    // Its event loop ends, and with it all that it would confirm.
    killed.die();
    server.close();
}

#[test]
fn why_an_owner_declines_the_plan_is_told_until_the_node_takes_part() {
    let site = Site::new(schema(&[3]));
    let server = site.server();
    let (watch, id) = (server.watch(), site.node("a").id());
    let invited = |name| join(&server.join_string(), site.node(name), client_config()).unwrap();
    invited("a").decline("the data's owner does not permit \u{1b}[31mthe strategy").unwrap();
    eventually("the server heard it", || !watch.status().declined.is_empty());
    let declined = Declined { node: id, reason: "the data's owner does not permit  [31mthe strategy".to_owned() };
    assert_eq!(watch.status().declined.as_slice(), std::slice::from_ref(&declined));
    let listed = NodeRegistry::open(&site.node_dir("server")).unwrap().list();
    assert_eq!(listed[0].declined.as_ref(), Some(&declined.reason), "another process sees it");
    assert_eq!((listed[0].standing, watch.status().connected), (Standing::Allowed, 0));

    let client = invited("a").start::<Flex>(&[echo(1)], site.schema.clone(), FlexDevice).unwrap();
    eventually("it takes part", || watch.status().declined.is_empty());
    drop(client);
}

#[test]
fn a_renewal_takes_effect_while_the_server_runs() {
    let site = Site::new(schema(&[3]));
    let server = site.server();
    let old = server.join_string();
    let node = site.spawn(&server, "a", &[1], FlexDevice);
    // Another process does it.
    let record = ServerRecord::renew(&site.node_dir("server")).unwrap();
    eventually("the secret is new", || server.join_string() != old);
    let (host, port) = (old.host(), old.port());
    assert_eq!(server.join_string(), ServerRecord::join_string(&site.node_dir("server"), host, port).unwrap());
    let refused = join(&old, site.node("b"), client_config()).err().unwrap().to_string();
    assert!(refused.contains("secret"), "{refused}");
    assert!(join(&server.join_string(), site.node("b"), client_config()).is_ok());
    // Who enrolled before needs no secret, and trusts the authority, which is the same.
    assert!(join(&old, site.node("a"), client_config()).is_ok());
    assert_eq!(ServerRecord::of(&site.node_dir("server")).unwrap(), record, "the server made none of its own");
    server.close();
    node.end().unwrap();
}
