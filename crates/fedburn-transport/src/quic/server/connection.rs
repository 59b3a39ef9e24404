//! The life of a connection: who it is, its greeting, its streams, its end.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::super::NodeId;
use super::super::identity::enrol::{CHANNEL_LABEL, ChannelBinding};
use super::super::stream::{FrameReader, StreamError, send};
use super::endpoint::{Door, Guest};
use super::link::{Link, Said};
use super::state::Shared;
use super::{requests, uploads, watch};
use crate::wire::limits::MINOR;
use crate::wire::{CloseCode, Der, Enrolled, Extensions, Message, Refusal, Refused, Welcome, short_reason};

/// Serves a connection to its end.
pub(super) async fn serve(connection: Connection, shared: Arc<Shared>, door: Arc<Door>) {
    let Some(node) = peer(&connection) else {
        let Some(_place) = door.enter(Guest::Stranger(connection.remote_address().ip()), &connection) else {
            return shared.counters.close(&connection, CloseCode::Limit, "too many connections");
        };
        return serve_stranger(&connection, &shared).await;
    };
    if !shared.identity.admits(node) {
        let reason = "the node was revoked, or is not on the server's list";
        return shared.counters.close(&connection, CloseCode::Revoked, reason);
    }
    let Some(_place) = door.enter(Guest::Node(node), &connection) else {
        return shared.counters.close(&connection, CloseCode::Limit, "too many connections");
    };
    let link = Arc::new(Link::new(node, connection, &shared));
    match timeout(Duration::from_secs(shared.config.hello_timeout_secs), greeting(&link, &shared)).await {
        Ok(Ok(())) => {}
        Ok(Err((code, reason))) => return link.close(code, &reason),
        Err(_) => return link.close(CloseCode::HelloTimeout, "no greeting came"),
    }
    tracing::info!(%node, address = %link.connection.remote_address(), "node.connected");
    let end = serve_streams(&link, &shared).await;
    if let Some(reason) = declined(&end) {
        tracing::warn!(%node, reason, "node.declined");
        shared.note_declined(node, Some(reason));
    }
    shared.left(&link);
    tracing::info!(%node, reason = %end, "node.disconnected");
}

/// Why the data's owner does not let the node take part, where that is how the connection ended.
fn declined(end: &quinn::ConnectionError) -> Option<String> {
    let quinn::ConnectionError::ApplicationClosed(close) = end else { return None };
    let declined = CloseCode::from_number(close.error_code.into_inner()) == Some(CloseCode::Declined);
    // It goes to terminals, and comes from outside.
    let plain = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    declined.then(|| short_reason(plain(&String::from_utf8_lossy(&close.reason))))
}

/// The node of the certificate that the other side showed and TLS verified.
fn peer(connection: &Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    NodeId::of_certificate(chain.first()?)
}

/// Who has no certificate may ask for one, once, and nothing else.
async fn serve_stranger(connection: &Connection, shared: &Arc<Shared>) {
    let only = "without a certificate a node may enrol and nothing else";
    let patience = Duration::from_secs(shared.config.hello_timeout_secs);
    let asked = async {
        let (sending, receiving) = connection.accept_bi().await?;
        let frame = FrameReader::new(receiving).next().await?;
        Ok::<_, StreamError>((sending, frame.map(|frame| frame.message()).transpose()?))
    };
    let (mut sending, message) = match timeout(patience, asked).await {
        Ok(Ok((sending, Some(Message::Enroll(enroll))))) => (sending, enroll),
        Ok(Err(StreamError::Lost(_))) => return,
        Ok(_) => return shared.counters.close(connection, CloseCode::Unauthenticated, only),
        Err(_) => return shared.counters.close(connection, CloseCode::HelloTimeout, only),
    };
    let (server, channel) = (shared.clone(), channel(connection));
    let surroundings = shared.surroundings.clone();
    let enrolled = tokio::task::spawn_blocking(move || {
        // Writes the registry, which waits for the disk.
        server.identity.enrol(&message.csr, &message.mac.0, &channel)
    });
    let answer = match surroundings.elsewhere(enrolled).await {
        Ok(Ok((node, chain))) => {
            tracing::info!(%node, "node.enrolled");
            certificate(chain)
        }
        Ok(Err(e)) => {
            tracing::warn!(address = %connection.remote_address(), error = %e, "node.enrolment_refused");
            refuse(Refusal::Enrolment, e.to_string())
        }
        Err(_) => refuse(Refusal::Internal, "the server is ending".to_owned()),
    };
    let _ = timeout(patience, last_words(connection, &mut sending, &answer)).await;
    shared.counters.close(connection, CloseCode::Ok, "enrolled");
}

/// Sends the last message of a connection. Who gets it closes; since the packet that says so may be lost, it is waited
/// for only a moment once the message is known to have come.
pub(super) async fn last_words(connection: &Connection, sending: &mut SendStream, message: &Message) {
    if send(sending, super::super::stream::REQUEST, message).await.is_ok() && sending.finish().is_ok() {
        let _ = sending.stopped().await;
        let _ = timeout(LAST_PACKET, connection.closed()).await;
    }
}

/// Keying material of the connection, the same at its other end and nowhere else.
pub(super) fn channel(connection: &Connection) -> ChannelBinding {
    let mut material = ChannelBinding::default();
    // Fails only before the handshake is complete.
    let _ = connection.export_keying_material(&mut material, CHANNEL_LABEL, &[]);
    material
}

/// A certificate chain as an answer; its last is the authority's.
pub(super) fn certificate(mut chain: Vec<CertificateDer<'static>>) -> Message {
    let der = |certificate: CertificateDer<'static>| Der(certificate.as_ref().to_vec().into());
    let ca = chain.pop().map(der).unwrap_or_default();
    Message::Enrolled(Enrolled { chain: chain.into_iter().map(der).collect(), ca, ext: Extensions::default() })
}

pub(super) fn refuse(code: Refusal, reason: String) -> Message {
    Message::Refused(Refused { code, reason: short_reason(reason), ext: Extensions::default() })
}

/// The first request of a connection.
async fn greeting(link: &Link, shared: &Shared) -> Result<(), (CloseCode, String)> {
    let lost = |e: StreamError| (CloseCode::Protocol, e.to_string());
    let (mut sending, receiving) = link.connection.accept_bi().await.map_err(|e| lost(e.into()))?;
    let frame = FrameReader::new(receiving).next().await.map_err(lost)?;
    let message = frame.map(|frame| frame.message()).transpose().map_err(|e| lost(e.into()))?;
    let Some(Message::Hello(hello)) = message else {
        return Err((CloseCode::Protocol, "the first message must be a greeting".to_owned()));
    };
    // The lower minor version wins, and ours is the lowest there is.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let welcome = Welcome {
        minor: MINOR,
        features: link.agree(hello.features),
        server_time: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        epoch: shared.epoch,
        limits: shared.limits,
        plan: shared.plan.name(),
        ext: Extensions::default(),
    };
    send(&mut sending, super::super::stream::REQUEST, &welcome.into()).await.map_err(lost)?;
    let _ = sending.finish();
    tracing::debug!(node = %link.node, software = hello.software, "node.greeted");
    // A connection greets once.
    let _ = link.said.set(Said { labels: hello.labels, software: hello.software });
    Ok(())
}

/// Takes the node's streams until the connection ends, and says why it did.
async fn serve_streams(link: &Arc<Link>, shared: &Arc<Shared>) -> quinn::ConnectionError {
    loop {
        tokio::select! {
            biased;
            stream = link.connection.accept_bi() => match stream {
                Ok((sending, receiving)) => {
                    tokio::spawn(request(link.clone(), shared.clone(), sending, receiving));
                }
                Err(end) => return end,
            },
            stream = link.connection.accept_uni() => match stream {
                Ok(stream) => {
                    let link = link.clone();
                    let shared = shared.clone();
                    tokio::spawn(async move { uploads::chunk(&link, &shared, stream).await });
                }
                Err(end) => return end,
            },
        }
    }
}

/// Reads a request, waits for its turn, answers it.
async fn request(link: Arc<Link>, shared: Arc<Shared>, mut sending: SendStream, receiving: RecvStream) {
    let mut reader = FrameReader::new(receiving);
    let message = match timeout(REQUEST_TIMEOUT.min(shared.config.progress_timeout()), reader.next()).await {
        Ok(Ok(Some(frame))) => frame.message(),
        Ok(Ok(None)) | Ok(Err(StreamError::Lost(_))) => return,
        Ok(Err(e)) => return link.close(CloseCode::Protocol, &e.to_string()),
        Err(_) => return link.close(CloseCode::Slow, "a request did not come whole"),
    };
    let message = match message {
        Ok(message) => message,
        Err(e) => return link.close(CloseCode::Protocol, &e.to_string()),
    };
    // Nothing more is wanted of this stream; what came behind the request is dropped.
    let mut receiving = reader.into_inner();
    let _ = receiving.stop(VarInt::from_u32(CloseCode::Ok as u32));
    // The registry may have changed since the connection began.
    if !shared.identity.admits(link.node) {
        return link.close(CloseCode::Revoked, "the node was revoked");
    }
    tokio::time::sleep(link.turn()).await;
    let _ = sending.set_priority(super::super::tuning::CONTROL_PRIORITY);
    if let Message::Watch(_) = message {
        return watch::serve(&link, &shared, &mut sending).await;
    }
    match requests::answer(&link, &shared, message).await {
        Ok(answer) => {
            let sent = send(&mut sending, super::super::stream::REQUEST, &answer);
            match timeout(shared.config.progress_timeout(), sent).await {
                Ok(Ok(())) => drop(sending.finish()),
                // Nobody wants the answer.
                Ok(Err(_)) => {}
                Err(_) => link.close(CloseCode::Slow, "does not read what the server says"),
            }
        }
        Err((code, reason)) => link.close(code, &reason),
    }
}

/// Time for the packet that closes a connection.
const LAST_PACKET: Duration = Duration::from_millis(500);
/// Time for a request once its stream was opened.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
