//! The server's part of a round's trace, told from the run's events.

use std::ops::ControlFlow;
use std::time::SystemTime;

use fedburn::core::{ClientId, Event, Observer, RoundIndex, StopReason};

use super::clock::Clock;
use super::{RunTrace, Span, Tracer};

/// Records each round as a trace: the round, and as its parts, one after another, choosing the cohort (`sample`), the
/// training of each client from the offer to its outcome (`task`), `aggregate`, `evaluate` and `checkpoint`.
///
/// A served run is checkpointed after each round; with that, the round's span is over. Before its first round, and for
/// what clients measure after the last, there is none.
pub struct RoundSpans {
    tracer: Tracer,
    run: RunTrace,
    /// Set anew with each round.
    clock: Clock,
    /// When the latest part ended, and the next began.
    latest: SystemTime,
    open: Option<Open>,
}

/// A round that is not over.
struct Open {
    span: Span,
    round: RoundIndex,
    /// When its tasks were offered.
    asked: SystemTime,
}

impl RoundSpans {
    /// Spans of the rounds of `run`.
    pub fn new(tracer: Tracer, run: RunTrace) -> Self {
        let clock = Clock::set();
        Self { tracer, run, clock, latest: clock.began(), open: None }
    }

    fn saw(&mut self, event: &Event, now: SystemTime) {
        match event {
            Event::RunStarted { .. } => {}
            Event::RoundStarted { round, cohort, available } => {
                let span = Span::new(self.run.round(*round), "round", self.latest, now);
                let span = span.with("fedburn.round", round.0).with("fedburn.available", *available);
                let span = span.with("fedburn.cohort", cohort.len());
                self.open = Some(Open { span, round: *round, asked: now });
                self.part("sample", now);
            }
            Event::ClientTrained { client, num_examples, .. } => {
                self.task(*client, now, |task| task.with("fedburn.examples", *num_examples));
            }
            Event::ClientFailed { client, failure, .. } => {
                self.task(*client, now, |task| task.failed(failure.to_string()));
            }
            Event::RoundCommitted { updates, failures, bytes_down, bytes_up, .. } => {
                self.part("aggregate", now);
                self.tell(|round| {
                    let round = round.with("fedburn.updates", *updates).with("fedburn.failures", *failures);
                    round.with("fedburn.bytes_down", *bytes_down).with("fedburn.bytes_up", *bytes_up)
                });
            }
            Event::RoundAbandoned { reason, .. } => self.tell(|round| round.failed(reason.clone())),
            Event::Evaluated { .. } => self.part("evaluate", now),
            Event::Checkpointed { .. } => {
                self.part("checkpoint", now);
                if let Some(Open { span, .. }) = self.open.take() {
                    self.tracer.record(Span { ended: now, ..span });
                }
            }
            // Within a part, or after the last round.
            _ => return,
        }
        self.latest = now;
    }

    /// What has gone on since the latest part is over.
    fn part(&self, name: &'static str, now: SystemTime) {
        if let Some(Open { span, .. }) = &self.open {
            self.tracer.record(Span::part(span.id, name, self.latest, now));
        }
    }

    /// A client's training is over.
    fn task(&self, client: ClientId, now: SystemTime, tell: impl FnOnce(Span) -> Span) {
        if let Some(Open { span, round, asked }) = &self.open {
            let task = Span::new(self.run.task(*round, client), "task", *asked, now).within(span.id);
            self.tracer.record(tell(task.with("fedburn.round", round.0).with("fedburn.client", client.0)));
        }
    }

    /// Adds to what is known of the round.
    fn tell(&mut self, tell: impl FnOnce(Span) -> Span) {
        self.open = self.open.take().map(|open| Open { span: tell(open.span), ..open });
    }
}

impl Observer for RoundSpans {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        self.saw(event, self.clock.now());
        if self.open.is_none() {
            self.clock = Clock::set();
            self.latest = self.clock.began();
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use fedburn::core::{ClientFailure, Metrics};
    use serde_json::json;

    use super::super::SpanSink;
    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<Span>>>);

    impl SpanSink for Kept {
        fn take(&self, span: Span) {
            self.0.lock().unwrap().push(span);
        }
    }

    const ROUND: RoundIndex = RoundIndex(3);

    /// The spans of a run in which each event comes a second after the one before.
    fn spans(events: &[Event]) -> Vec<Span> {
        let kept = Kept::default();
        let mut spans = RoundSpans::new(Tracer::new(kept.clone()), RunTrace::new("5f0c"));
        (0..).zip(events).for_each(|(second, event)| spans.saw(event, at(second)));
        let spans = kept.0.lock().unwrap();
        spans.clone()
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn begun() -> [Event; 2] {
        [
            Event::RunStarted { round: RoundIndex(2), rounds: 3, clients: 9, parameters: 1 },
            Event::RoundStarted { round: ROUND, cohort: vec![ClientId(4), ClientId(5)], available: 9 },
        ]
    }

    fn trained(client: u64) -> Event {
        Event::ClientTrained { round: ROUND, client: ClientId(client), num_examples: 600, metrics: Metrics::new() }
    }

    fn failed(client: u64) -> Event {
        Event::ClientFailed { round: ROUND, client: ClientId(client), failure: ClientFailure::TimedOut }
    }

    #[test]
    fn a_round_is_a_trace_of_what_the_server_did_one_after_another() {
        let committed = Event::RoundCommitted {
            round: ROUND,
            updates: 1,
            failures: 1,
            metrics: Metrics::new(),
            bytes_down: 80,
            bytes_up: 40,
            seconds: 3.0,
        };
        let measured = Event::Evaluated { round: ROUND, metrics: Metrics::new() };
        let rest = [trained(5), failed(4), committed, measured, Event::Checkpointed { round: ROUND }];
        let spans = spans(&[&begun()[..], &rest].concat());
        let told: Vec<_> = spans.iter().map(|span| (span.name, span.began, span.ended)).collect();
        let expected = [
            ("sample", at(0), at(1)),
            ("task", at(1), at(2)),
            ("task", at(1), at(3)),
            ("aggregate", at(3), at(4)),
            ("evaluate", at(4), at(5)),
            ("checkpoint", at(5), at(6)),
            ("round", at(0), at(6)),
        ];
        assert_eq!(told, expected);

        let run = RunTrace::new("5f0c");
        let (round, parts) = spans.split_last().unwrap();
        assert_eq!((round.id, round.parent), (run.round(ROUND), None));
        assert!(parts.iter().all(|part| part.id.trace == round.id.trace && part.parent == Some(round.id.span)));
        assert_eq!([parts[1].id, parts[2].id], [5, 4].map(|client| run.task(ROUND, ClientId(client))));
        let failures: Vec<_> = spans.iter().filter_map(|span| span.failure.as_deref()).collect();
        assert_eq!((failures, parts[2].failure.is_some()), (vec!["timed out"], true));
        assert!(round.attributes.contains(&("fedburn.bytes_up", json!(40))), "{:?}", round.attributes);
    }

    #[test]
    fn an_abandoned_round_says_why() {
        let (round, reason) = (ROUND, "1 of 2".to_owned());
        let abandoned =
            Event::RoundAbandoned { round, reason, updates: 1, failures: 1, bytes_down: 0, bytes_up: 0, seconds: 1.0 };
        let spans = spans(&[&begun()[..], &[abandoned, Event::Checkpointed { round }]].concat());
        assert_eq!(spans.last().unwrap().failure.as_deref(), Some("1 of 2"));
    }

    #[test]
    fn what_belongs_to_no_round_is_in_no_trace() {
        let (round, metrics) = (RoundIndex(0), Metrics::new());
        let measured = Event::Evaluated { round, metrics: metrics.clone() };
        let asked = Event::ClientEvaluated { round, client: ClientId(1), metrics };
        let ended = Event::RunEnded { round, stopped: None };
        assert_eq!(spans(&[begun()[0].clone(), measured, asked, ended]), []);
    }
}
