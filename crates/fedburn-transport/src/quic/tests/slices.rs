//! Parts of the model: named in the task, of their own length both ways, known from the plan.

use fedburn_core::{
    ClientReport, Codec, CompressionConfig, LocalUpdate, Metrics, ParamEntry, ParamKind, ParamVector, Reply, SliceName,
};

use super::*;

fn entries(shapes: &[(&str, usize)]) -> Arc<ParamSchema> {
    let entry = |(path, len): &(&str, usize)| ParamEntry::new(*path, vec![*len], ParamKind::Weight);
    Arc::new(ParamSchema::new(shapes.iter().map(entry).collect()).unwrap())
}

/// A large tensor of two and a half chunks between two small ones.
const LARGE: usize = 2_621_440;

fn schemas() -> Schemas {
    let parts =
        [("ends", entries(&[("a", 3), ("c", 5)])), ("large", entries(&[("b", LARGE)])), ("half", entries(&[("b", 4)]))];
    let whole = Schemas::from(entries(&[("a", 3), ("b", LARGE), ("c", 5)]));
    parts.into_iter().fold(whole, |schemas, (name, part)| schemas.with_slice(name, part).unwrap())
}

/// What the server gets of a client that adds 1 to what it is sent of `names`, where it knows `at_node`.
fn answered(
    names: &[&'static str],
    up: Codec,
    at_node: &Schemas,
    update: impl Fn(ParamVector<Flex>) -> ParamVector<Flex> + Send,
) -> Result<ParamVector<Flex>, String> {
    let known = schemas();
    let mut site = Site::new(known.model().clone());
    site.schemas = known.clone();
    site.config.reconnect_grace_secs = 0;
    let mut server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(1)], at_node.clone(), FlexDevice).unwrap();
    let names: Vec<SliceName> = names.iter().map(|&name| name.into()).collect();
    let compression = CompressionConfig { up, ..Default::default() };
    let part = known.part(&names).unwrap();
    let values: Vec<f32> = (0..part.num_values()).map(|i| i as f32).collect();
    let global = vector(&values, &part, &FlexDevice);
    let mut requests = training(&site.schema, 1, &[1]);
    if let Request::Train(task) = &mut requests[0].1 {
        (task.global, task.slice, task.compression) = (global.clone(), names.clone(), compression);
    }
    std::thread::scope(|scope| {
        let node = scope.spawn(move || -> Result<(), String> {
            let asked = client.next().map_err(|e| e.to_string())?;
            let Request::Train(task) = asked.ok_or("goodbye")?.request else { panic!("asked to train") };
            assert_eq!(task.slice, names);
            assert_eq!(task.global.to_host(), values);
            let params = update(task.global.clone());
            let params = match up.is_lossless() {
                true => params,
                false => params.update_through(up, &task.global, None, task.seed).unwrap().0,
            };
            let (side, report, metrics) = (SideInfo::default(), ClientReport::default(), Metrics::new());
            let update = LocalUpdate { params, num_examples: 3, side, report, metrics };
            client.reply(ClientId(1), RoundIndex(1), Ok(Reply::Trained(update))).map_err(|e| e.to_string())
        });
        let outcome = server.exchange(requests, LONG).next().unwrap();
        server.close();
        match (node.join().unwrap(), outcome.reply) {
            (Ok(()), Ok(Reply::Trained(update))) => {
                assert!(update.params.schema().ensure_same(&part).is_ok());
                Ok(update.params)
            }
            (node, reply) => Err(format!("{node:?}; {reply:?}")),
        }
    })
}

fn more(params: ParamVector<Flex>) -> ParamVector<Flex> {
    params.with_values(params.values().clone() + 1.0).unwrap()
}

#[test]
fn parts_come_and_go_with_their_own_lengths() {
    for (names, up) in [
        (&["ends"][..], Codec::F32 {}),
        (&["large"], Codec::F32 {}),
        (&["large", "ends"], Codec::F32 {}),
        (&["half"], Codec::F32 {}),
        (&["large"], Codec::Int8 {}),
        (&["ends"], Codec::F16 {}),
        (&[], Codec::F32 {}),
    ] {
        let came = answered(names, up, &schemas(), more).unwrap().to_host();
        // Codecs of blocks have a scale of half precision.
        let within = if matches!(up, Codec::Int8 {}) { 0.5 } else { 0.0 };
        assert!(
            came.iter().enumerate().all(|(i, value)| (value - (i as f32 + 1.0)).abs() <= within),
            "{names:?}, {up:?}"
        );
    }
}

#[test]
fn a_part_that_the_nodes_plan_does_not_have_is_not_fetched() {
    let model = || Schemas::from(schemas().model().clone());
    let refused = answered(&["ends"], Codec::F32 {}, &model(), more).unwrap_err();
    assert!(refused.contains("no part `ends`"), "{refused}");
    let other = model().with_slice("ends", entries(&[("a", 3)])).unwrap();
    let refused = answered(&["ends"], Codec::F32 {}, &other, more).unwrap_err();
    assert!(refused.contains("32 bytes where the plan has one of 12"), "{refused}");
}

#[test]
fn an_update_of_the_whole_for_a_part_is_not_sent() {
    let whole = |_| ParamVector::zeros(schemas().model().clone(), &FlexDevice);
    let refused = answered(&["ends"], Codec::F32 {}, &schemas(), whole).unwrap_err();
    assert!(refused.contains("a vector of another model"), "{refused}");
}
