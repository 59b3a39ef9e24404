//! What a collector of OpenTelemetry traces gets of a federation of real processes.
#![cfg(all(unix, feature = "otel"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use socket2::{Domain, Socket, Type};
use support::federation::Federation;
use support::traces::Traces;
use support::{STEADY, Workplace};

/// Three of six clients train in each of four rounds.
fn config() -> String {
    STEADY.replace("seeds = [0]", "seeds = [3]")
}

/// Plays the run with a server and two nodes that send to these collectors; it must have the bits of one process.
fn play<'a>(place: &'a Workplace, server: Option<&str>, nodes: Option<&str>) -> Federation<'a> {
    place.succeed("experiment run suite --quiet --out simulated");
    let mut federation = Federation::new(place, "served", "");
    federation.collector = server.map(str::to_owned);
    let server = federation.serve();
    federation.collector = nodes.map(str::to_owned);
    let nodes = vec![federation.join("node-0", "0..3"), federation.join("node-1", "3..6")];
    federation.finish(server, nodes).assert_same(&Traces::of(&place.seed("simulated", 3)), "traced");
    federation
}

fn times_unsent(federation: &Federation<'_>) -> [usize; 3] {
    ["server", "node-0", "node-1"].map(|name| federation.log(name).matches("trace.unsent").count())
}

#[test]
fn a_round_is_one_trace_of_the_server_and_its_nodes() {
    let (place, collector) = (Workplace::new(&config()), Collector::start());
    let federation = play(&place, Some(&collector.address), Some(&collector.address));
    assert_eq!(times_unsent(&federation), [0; 3]);

    let mut traces = BTreeMap::<Vec<u8>, Vec<Span>>::new();
    for span in collector.spans() {
        traces.entry(span.trace.clone()).or_default().push(span);
    }
    let (mut rounds, mut nodes) = (BTreeSet::new(), BTreeSet::new());
    for spans in traces.values() {
        let ids: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (&span.id[..], span)).collect();
        assert_eq!(ids.len(), spans.len(), "two spans have one id");
        let of = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
        let [round] = of("round")[..] else { panic!("{spans:?}") };
        assert!(round.parent.is_empty() && rounds.insert(round.attributes["fedburn.round"].clone()), "{round:?}");
        for name in ["sample", "aggregate", "evaluate", "checkpoint"] {
            let [part] = of(name)[..] else { panic!("{name}: {spans:?}") };
            assert_eq!((&part.parent, &*part.service), (&round.id, "fedburn-server"), "{name}");
        }
        // From above: each task has its node's three parts, and from below: whatever a node did was for a task.
        let tasks = of("task");
        assert_eq!(tasks.len(), 3);
        for task in &tasks {
            assert_eq!((&task.parent, &*task.service), (&round.id, "fedburn-server"));
            let parts: BTreeSet<&str> = spans.iter().filter(|s| s.parent == task.id).map(|s| s.name.as_str()).collect();
            assert_eq!(parts, ["download", "train", "upload"].into());
        }
        let parts: Vec<&Span> = spans.iter().filter(|span| span.service == "fedburn-client").collect();
        assert_eq!(parts.len(), 9);
        for part in parts {
            assert_eq!(ids[&part.parent[..]].name, "task", "{part:?}");
            nodes.insert(part.attributes["fedburn.node"].clone());
        }
        assert_eq!(spans.len(), 1 + 4 + 3 + 9);
        assert!(spans.iter().all(|span| span.began <= span.ended && !span.failed), "{spans:?}");
    }
    assert_eq!(rounds, ["1", "2", "3", "4"].map(str::to_owned).into());
    assert_eq!(nodes.len(), 2, "{nodes:?}");
}

#[test]
fn nodes_trace_only_what_the_server_traces() {
    let (place, collector) = (Workplace::new(&config()), Collector::start());
    let federation = play(&place, None, Some(&collector.address));
    assert_eq!(times_unsent(&federation), [0; 3]);
    assert!(collector.spans().is_empty());
}

#[test]
fn a_collector_that_is_away_costs_the_run_nothing_and_is_told_once() {
    let place = Workplace::new(&config());
    // The port is taken, and nobody listens.
    let taken = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    taken.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let gone = taken.local_addr().unwrap().as_socket().unwrap();
    let federation = play(&place, Some(&format!("http://{gone}")), None);
    assert_eq!(times_unsent(&federation), [1, 0, 0]);
}

/// Bodies of requests, each an `ExportTraceServiceRequest`.
type Batches = Vec<Vec<u8>>;

/// A collector that takes whatever comes.
struct Collector {
    address: String,
    connections: Arc<Mutex<Vec<JoinHandle<Batches>>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, connections) = (format!("http://{}", listener.local_addr().unwrap()), Arc::default());
        let collector = Self { address, connections: Arc::clone(&connections) };
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                // Held meanwhile: nothing of it is answered that is not among them.
                let mut connections = connections.lock().unwrap();
                connections.push(std::thread::spawn(move || batches(&stream)));
            }
        });
        collector
    }

    /// All that came, once the processes that it came from have ended.
    fn spans(self) -> Vec<Span> {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        connections.into_iter().flat_map(|batches| batches.join().unwrap()).flat_map(|batch| spans(&batch)).collect()
    }
}

/// Answers the requests of one connection, to its end.
fn batches(mut stream: &TcpStream) -> Batches {
    let (mut lines, mut batches) = (BufReader::new(stream), Vec::new());
    loop {
        let (mut head, mut line) = (Vec::new(), String::new());
        while lines.read_line(&mut line).is_ok_and(|len| len > 2) {
            head.push(std::mem::take(&mut line).trim().to_lowercase());
        }
        let Some(first) = head.first() else { return batches };
        assert!(first.starts_with("post /v1/traces ") && head.contains(&"content-type: application/x-protobuf".into()));
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut batch = vec![0; length];
        lines.read_exact(&mut batch).unwrap();
        batches.push(batch);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    }
}

/// A span as it came.
#[derive(Debug)]
struct Span {
    service: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    /// Empty for a root.
    parent: Vec<u8>,
    name: String,
    began: u64,
    ended: u64,
    attributes: BTreeMap<String, String>,
    failed: bool,
}

/// The spans of an `ExportTraceServiceRequest`; the numbers are those of opentelemetry-proto 1.
fn spans(batch: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in Message::of(batch).messages(1) {
        let service = attributes(&resource.messages(1)[0], 1)["service.name"].clone();
        let of_scope = resource.messages(2).into_iter().flat_map(|scope| scope.messages(2));
        spans.extend(of_scope.map(|span| Span {
            service: service.clone(),
            trace: span.bytes(1),
            id: span.bytes(2),
            parent: span.bytes(4),
            name: span.text(5),
            began: span.number(7),
            ended: span.number(8),
            attributes: attributes(&span, 9),
            failed: span.messages(15).iter().any(|status| status.number(3) == 2),
        }));
    }
    spans
}

/// Key and value of each attribute, numbers in digits.
fn attributes(of: &Message<'_>, field: u64) -> BTreeMap<String, String> {
    let value = |value: &Message<'_>| match value.bytes(1) {
        text if text.is_empty() => value.number(3).to_string(),
        text => String::from_utf8(text).unwrap(),
    };
    of.messages(field).iter().map(|pair| (pair.text(1), value(&pair.messages(2)[0]))).collect()
}

/// A message of protobuf: numbers of fields, and what they hold.
struct Message<'a>(Vec<(u64, Field<'a>)>);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    fn of(mut bytes: &'a [u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let field = match tag & 7 {
                0 => Field::Number(varint(&mut bytes)),
                1 => Field::Number(u64::from_le_bytes(bytes.split_off(..8).unwrap().try_into().unwrap())),
                2 => {
                    let len = varint(&mut bytes) as usize;
                    Field::Bytes(bytes.split_off(..len).unwrap())
                }
                5 => Field::Number(u32::from_le_bytes(bytes.split_off(..4).unwrap().try_into().unwrap()).into()),
                other => panic!("wire type {other}"),
            };
            fields.push((tag >> 3, field));
        }
        Self(fields)
    }

    fn each(&self, number: u64) -> impl Iterator<Item = &Field<'a>> {
        self.0.iter().filter(move |(field, _)| *field == number).map(|(_, value)| value)
    }

    fn number(&self, number: u64) -> u64 {
        self.each(number)
            .find_map(|field| if let Field::Number(value) = field { Some(*value) } else { None })
            .unwrap_or(0)
    }

    fn all_bytes(&self, number: u64) -> Vec<&'a [u8]> {
        self.each(number)
            .filter_map(|field| if let Field::Bytes(bytes) = field { Some(*bytes) } else { None })
            .collect()
    }

    fn bytes(&self, number: u64) -> Vec<u8> {
        self.all_bytes(number).concat()
    }

    fn text(&self, number: u64) -> String {
        String::from_utf8(self.bytes(number)).unwrap()
    }

    fn messages(&self, number: u64) -> Vec<Message<'a>> {
        self.all_bytes(number).into_iter().map(Message::of).collect()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first().unwrap();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint without an end")
}
