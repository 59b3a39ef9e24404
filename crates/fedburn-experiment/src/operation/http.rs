//! The server of the page: a few fixed addresses, to be read only, for who has the token.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::{Monitor, page, prometheus};

/// Serves a [`Monitor`] over HTTP until it is dropped, on a thread of its own: `/` for people, `/status` and `/metrics`
/// for programs.
///
/// All that tells anything needs the token in the `Authorization` header, whatever the address listened at; there is
/// nothing that changes anything.
pub struct PageServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The page cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PageServerError {
    /// The address cannot be had.
    #[error("page at {address}: {source}; choose another address with --page")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("page: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

impl PageServer {
    /// Listens at `address`, port 0 for any, and answers who shows `token`.
    ///
    /// # Errors
    /// [`PageServerError`].
    pub fn start(address: SocketAddr, token: String, monitor: Monitor) -> Result<Self, PageServerError> {
        let refused = |source| PageServerError::Address { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let no_thread = |source| PageServerError::Thread { source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let (stop, stopped) = oneshot::channel();
        let site = Arc::new(Site { token, monitor });
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, site) => {}
                    // An error means that the sender is gone: that is the end too.
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("page".to_owned()).spawn(serve).map_err(no_thread)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The address listened at, with the port that was given where none was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread has ended already where nobody listens.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Site {
    token: String,
    monitor: Monitor,
}

async fn serve(listener: std::net::TcpListener, site: Arc<Site>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "page.failed"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            _ = seconds.tick() => site.monitor.sample(),
            (accepted, place) = accept => match (accepted, place) {
                (Ok((stream, _)), Ok(place)) => {
                    tokio::spawn(connection(stream, site.clone(), place));
                }
                // Out of file descriptors, for one: it passes.
                _ => tokio::time::sleep(BREATH).await,
            },
        }
    }
}

/// One request and its answer; who is slow is cut off.
async fn connection(stream: TcpStream, site: Arc<Site>, _place: OwnedSemaphorePermit) {
    let answer = service_fn(|request: Request<_>| {
        let answer = site.answer(request.method(), request.uri().path(), request.headers());
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    match timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "page.request_failed"),
        Err(_) => tracing::debug!("page.request_too_slow"),
    }
}

impl Site {
    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let content: Content = match path {
            "/" => Content::open("text/html; charset=utf-8", page::shell),
            "/page.js" => Content::open("text/javascript; charset=utf-8", || page::SCRIPT.to_owned()),
            "/style.css" => Content::open("text/css; charset=utf-8", page::style),
            "/live" => Content::guarded("text/html; charset=utf-8", |monitor| {
                page::live(&monitor.snapshot(), &monitor.rounds())
            }),
            "/status" => Content::guarded("application/json", |monitor| {
                // Plain numbers, texts and maps with text keys: what JSON has.
                serde_json::to_string(&monitor.snapshot()).unwrap_or_default()
            }),
            "/metrics" => {
                Content::guarded("text/plain; version=0.0.4; charset=utf-8", |monitor| prometheus(&monitor.snapshot()))
            }
            _ => return refusal(StatusCode::NOT_FOUND, "there is nothing here"),
        };
        if method != Method::GET {
            let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, "this can only be read");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return answer;
        }
        match content.make {
            Make::Open(make) => finish(StatusCode::OK, content.kind, make()),
            Make::Guarded(make) if self.admits(headers) => finish(StatusCode::OK, content.kind, make(&self.monitor)),
            Make::Guarded(_) => {
                let mut answer = refusal(StatusCode::UNAUTHORIZED, "the token of the server's folder is needed");
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                answer
            }
        }
    }

    /// Whether the token is there. How long the comparison takes does not tell how much of it is right.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|shown| shown.ct_eq(self.token.as_bytes()).into())
    }
}

/// What is at an address.
struct Content {
    kind: &'static str,
    make: Make,
}

enum Make {
    /// The same for everybody: it tells nothing of the run.
    Open(fn() -> String),
    Guarded(fn(&Monitor) -> String),
}

impl Content {
    fn open(kind: &'static str, make: fn() -> String) -> Self {
        Self { kind, make: Make::Open(make) }
    }

    fn guarded(kind: &'static str, make: fn(&Monitor) -> String) -> Self {
        Self { kind, make: Make::Guarded(make) }
    }
}

fn refusal(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    finish(status, "text/plain; charset=utf-8", format!("{reason}\n"))
}

fn finish(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in HEADERS {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    answer
}

/// With every answer: nothing is loaded from elsewhere, kept, framed or guessed.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
];
/// Connections at once; others wait until one of these ends, which is soon.
const CONNECTIONS: usize = 64;
/// Time for the head of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the head of a request.
const MAX_HEAD: usize = 16 << 10;
/// Before the next attempt where no connection could be taken.
const BREATH: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use fedburn::core::{ClientId, Event, Mean, Metrics, Observer, RoundIndex};

    use super::super::{RunFacts, Snapshot};
    use super::*;

    const TOKEN: &str = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa";

    fn served() -> (PageServer, Monitor) {
        let run = RunFacts {
            name: "suite/<a>".to_owned(),
            title: "A \"title\" & more".to_owned(),
            seed: 3,
            hash: "0123456789abcdef".to_owned(),
            backend: "flex".to_owned(),
            results: "/nowhere".into(),
        };
        let mut monitor = Monitor::new(run);
        let round = RoundIndex(1);
        let metrics = |name: &'static str, value| Metrics::new().with(name, Mean::new(value, 10.0));
        let events = [
            Event::RunStarted { round: RoundIndex(0), rounds: 5, clients: 2, parameters: 10 },
            Event::RoundStarted { round, cohort: vec![ClientId(0), ClientId(1)], available: 2 },
            Event::ClientTrained { round, client: ClientId(0), num_examples: 5, metrics: Metrics::new() },
            Event::ClientFailed {
                round,
                client: ClientId(1),
                failure: fedburn::core::ClientFailure::Failed { reason: "<script>alert(1)</script>".to_owned() },
            },
            Event::RoundCommitted {
                round,
                updates: 1,
                failures: 1,
                metrics: metrics(Metrics::TRAIN_LOSS, 0.7),
                bytes_down: 80,
                bytes_up: 40,
                seconds: 0.25,
            },
            Event::Evaluated { round, metrics: metrics(Metrics::ACCURACY, 0.625) },
        ];
        for event in &events {
            assert!(monitor.on_event(event).is_continue());
        }
        (PageServer::start(([127, 0, 0, 1], 0).into(), TOKEN.to_owned(), monitor.clone()).unwrap(), monitor)
    }

    /// Status, head and body of an answer.
    fn ask(server: &PageServer, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    fn get(server: &PageServer, path: &str, token: Option<&str>) -> (u16, String, String) {
        let shown = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        ask(server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n{shown}\r\n"))
    }

    #[test]
    fn all_that_tells_anything_needs_the_token() {
        let (server, _) = served();
        let cut = &TOKEN[..51];
        let long = format!("{TOKEN}a");
        for path in ["/live", "/status", "/metrics"] {
            for wrong in [None, Some(""), Some(cut), Some(&*long), Some(&*TOKEN.to_uppercase())] {
                let (status, head, body) = get(&server, path, wrong);
                assert_eq!(status, 401, "{path} {wrong:?}");
                assert!(head.contains("www-authenticate: bearer") && !body.contains("title"), "{head} {body}");
            }
            assert_eq!(get(&server, path, Some(TOKEN)).0, 200, "{path}");
            // Tokens in addresses end up in logs.
            assert_eq!(get(&server, &format!("{path}?token={TOKEN}"), None).0, 401, "{path}");
        }
        for path in ["/", "/page.js", "/style.css"] {
            let (status, _, body) = get(&server, path, None);
            assert!(status == 200 && !body.contains("title\"") && !body.contains("0123456789"), "{path}: {body}");
        }
    }

    #[test]
    fn it_can_only_be_read_and_there_is_nothing_else() {
        let (server, _) = served();
        for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"] {
            let request = format!("{method} /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
            let (status, head, _) = ask(&server, &request);
            assert!(status == 405 && head.contains("allow: get"), "{method}: {head}");
        }
        for path in ["/nothing", "/status/", "/../etc/passwd", "//", "/%2e%2e/", "/live.js"] {
            assert_eq!(get(&server, path, Some(TOKEN)).0, 404, "{path}");
        }
    }

    #[test]
    fn every_answer_forbids_what_is_not_its_own() {
        let (server, _) = served();
        for path in ["/", "/page.js", "/style.css", "/live", "/status", "/metrics", "/nothing"] {
            for token in [None, Some(TOKEN)] {
                let (_, head, _) = get(&server, path, token);
                for (name, value) in HEADERS {
                    assert!(head.contains(&format!("{name}: {}", value.to_lowercase())), "{path}: {head}");
                }
            }
        }
        let (_, _, live) = get(&server, "/live", Some(TOKEN));
        assert!(!live.contains("<script") && live.contains("&lt;script&gt;alert(1)"), "{live}");
        assert!(!live.contains(" style="), "a style in the page would be blocked");
        assert!(live.replace("http://www.w3.org/2000/svg", "").find("http").is_none(), "{live}");
        assert!(live.contains("A &quot;title&quot; &amp; more") && live.contains("suite/&lt;a&gt;"));
    }

    #[test]
    fn the_page_the_status_and_the_metrics_tell_the_same() {
        let (server, monitor) = served();
        let of = |path| get(&server, path, Some(TOKEN)).2;
        let status: Snapshot = serde_json::from_str(&of("/status")).unwrap();
        assert_eq!(
            Snapshot { uptime_secs: 0.0, ..status.clone() },
            Snapshot { uptime_secs: 0.0, ..monitor.snapshot() }
        );
        assert_eq!((status.round, status.rounds, status.phase.name()), (1, 5, "evaluating"));
        assert_eq!((status.cohort.asked, status.cohort.answered, status.cohort.failed), (2, 1, 1));
        assert_eq!(status.last.unwrap().accuracy, Some(0.625));
        let (live, metrics) = (of("/live"), of("/metrics"));
        for figure in ["<strong id=\"round\">1 of 5", "<strong id=\"accuracy\">62.50 %", "<strong id=\"cohort\">1 of 2"]
        {
            assert!(live.contains(figure), "{figure} is not in {live}");
        }
        for line in [
            "fedburn_round 1\n",
            "fedburn_accuracy 0.625\n",
            "fedburn_cohort_clients{state=\"answered\"} 1\n",
            "fedburn_client_failures_total{reason=\"failed\"} 1\n",
            "fedburn_round_seconds_bucket{le=\"0.1\"} 0\nfedburn_round_seconds_bucket{le=\"0.3\"} 1\n",
        ] {
            assert!(metrics.contains(line), "{line} is not in {metrics}");
        }
    }

    #[test]
    fn who_is_slow_or_odd_holds_nobody_up() {
        let (server, _) = served();
        // More than half of all places, with half a request each, for as long as the test lasts.
        let slow: Vec<TcpStream> = (0..CONNECTIONS - 8)
            .map(|_| {
                let mut stream = TcpStream::connect(server.address()).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
                stream
            })
            .collect();
        assert_eq!(get(&server, "/status", Some(TOKEN)).0, 200);
        for odd in ["\r\n\r\n", "GET\r\n\r\n", "\0\0\0\0\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(odd.as_bytes()).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
        }
        let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(MAX_HEAD));
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let _ = stream.write_all(huge.as_bytes());
        assert_eq!(get(&server, "/status", Some(TOKEN)).0, 200);
        // The server hangs up on all of them by itself; would it not, this would not end.
        for mut stream in slow {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
    }
}
