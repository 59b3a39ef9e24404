//! Side vectors of another network than the model: both ends know them from the plan, or they do not travel.

use fedburn_core::ParamVector;
use fedburn_testkit::schema;

use super::*;

/// What one client is given beside a model of four values, where server and node know these schemas; otherwise what
/// either end says.
fn given(at_server: &Schemas, at_node: &Schemas, side: &SideInfo<Flex>) -> Result<SideInfo<Flex>, String> {
    let mut site = Site::new(at_server.model().clone());
    site.schemas = at_server.clone();
    site.config.reconnect_grace_secs = 0;
    let mut server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], at_node.clone(), FlexDevice).unwrap();
    let mut requests = training(&site.schema, 1, &[1]);
    if let Request::Train(task) = &mut requests[0].1 {
        task.side = side.clone();
    }
    std::thread::scope(|scope| {
        let node = scope.spawn(move || -> Result<_, String> {
            let asked = client.next().map_err(|e| e.to_string())?;
            let Request::Train(task) = asked.ok_or("goodbye")?.request else { panic!("asked to train") };
            let nothing = Err(ClientFailure::NoData);
            client.reply(ClientId(1), RoundIndex(1), nothing).map_err(|e| e.to_string())?;
            Ok(task.side)
        });
        let outcome = server.exchange(requests, LONG).next().unwrap();
        server.close();
        match (node.join().unwrap(), outcome.reply.unwrap_err()) {
            (Ok(side), ClientFailure::NoData) => Ok(side),
            (node, server) => Err(format!("{node:?}; {server}")),
        }
    })
}

fn model() -> Schemas {
    Schemas::from(schema(&[4]))
}

/// A generator of so many values.
fn with_generator(num_values: usize) -> Schemas {
    model().with_side(SideInfo::<Flex>::GENERATOR, schema(&[num_values]))
}

fn side(name: &'static str, vector: ParamVector<Flex>) -> SideInfo<Flex> {
    SideInfo { vectors: [(name.into(), vector)].into(), ..SideInfo::default() }
}

fn zeros(schema: &Arc<ParamSchema>) -> ParamVector<Flex> {
    ParamVector::zeros(schema.clone(), &FlexDevice)
}

#[test]
fn vectors_of_another_network_travel_bit_for_bit() {
    // A vector inside its manifest, and one of two and a half chunks.
    for num_values in [7, 2_621_440] {
        let (known, values): (_, Vec<f32>) = (with_generator(num_values), (0..num_values).map(|i| i as f32).collect());
        let mut sent = side("generator", vector(&values, known.side("generator"), &FlexDevice));
        sent.vectors.insert("control".into(), zeros(known.model()));
        let came = given(&known, &known, &sent).unwrap();
        assert_eq!(came.vectors.len(), 2);
        for (name, vector) in came.vectors {
            assert_eq!(vector.schema().fingerprint(), known.side(&name).fingerprint(), "{name}");
            assert!(vector.to_host() == sent.vectors[&name].to_host(), "{name}");
        }
    }
}

#[test]
fn equal_bytes_of_two_networks_are_two_vectors() {
    let known = model().with_side("generator", schema(&[2, 2]));
    let mut sent = side("generator", zeros(known.side("generator")));
    sent.vectors.insert("control".into(), zeros(known.model()));
    for (name, vector) in given(&known, &known, &sent).unwrap().vectors {
        assert_eq!(vector.schema().fingerprint(), known.side(&name).fingerprint(), "{name}");
    }
}

#[test]
fn a_vector_that_a_nodes_plan_does_not_have_gets_no_room_there() {
    let sent = side("generator", zeros(with_generator(9).side("generator")));
    for at_node in [model(), with_generator(8), model().with_side("other", schema(&[9]))] {
        let refused = given(&with_generator(9), &at_node, &sent).unwrap_err();
        let expected = 4 * at_node.side("generator").num_values();
        assert!(refused.contains(&format!("36 bytes where the plan has one of {expected}")), "{refused}");
    }
}

#[test]
fn a_vector_that_the_servers_plan_does_not_have_is_not_sent() {
    for (known, name) in [(model(), "generator"), (with_generator(8), "generator"), (with_generator(9), "control")] {
        let sent = side(name, zeros(&schema(&[9])));
        let refused = given(&known, &known, &sent).unwrap_err();
        assert!(refused.contains("goodbye") && refused.contains("a vector of another model"), "{refused}");
    }
}
