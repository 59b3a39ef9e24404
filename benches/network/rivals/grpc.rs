//! gRPC over TLS with tonic: one call, a stream of messages of bytes as they are.

use std::convert::Infallible;
use std::error::Error;

use bytes::{Buf, BufMut, Bytes};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Context, Poll, Service, http, tokio_stream};
use tonic::server::{ClientStreamingService, NamedService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::{CHUNK, Keys, Receiver, Update};

/// Listens; says where.
pub fn listen(runtime: &Runtime, keys: &Keys<'_>, receiver: Receiver) -> Result<String, Box<dyn Error>> {
    same_cipher();
    let read = |name: &str| Keys::read(keys.server().join(name));
    let identity = Identity::from_pem(read("server.pem")?, read("server.key")?);
    let tls = ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(read("ca.pem")?));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let server = Server::builder()
        .tls_config(tls)?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .add_service(Sink(receiver));
    runtime.spawn(server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))));
    Ok(format!("https://{address}"))
}

/// Connects as the node that is enrolled.
pub async fn connect(to: &str, keys: &Keys<'_>) -> Result<Channel, Box<dyn Error>> {
    same_cipher();
    let read = |name: &str| Keys::read(keys.node().join(name));
    let authority = Certificate::from_pem(Keys::read(keys.server().join("ca.pem"))?);
    let identity = Identity::from_pem(read("node.pem")?, read("node.key")?);
    let tls = ClientTlsConfig::new().ca_certificate(authority).identity(identity).domain_name("fedburn-server");
    let endpoint = Endpoint::from_shared(to.to_owned())?
        .tls_config(tls)?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME);
    Ok(endpoint.connect().await?)
}

/// Sends all of it in one call.
pub async fn send(channel: &Channel, payload: &Bytes) -> Result<(), Box<dyn Error>> {
    let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(2 * CHUNK);
    client.ready().await?;
    let (len, payload) = (payload.len(), payload.clone());
    let chunks = (0..len).step_by(CHUNK).map(move |at| payload.slice(at..len.min(at + CHUNK)));
    let path = http::uri::PathAndQuery::from_static("/fedburn.Sink/Upload");
    let answer = client.client_streaming(Request::new(tokio_stream::iter(chunks)), path, Plain).await?;
    match answer.into_inner().try_get_u64()? == len as u64 {
        true => Ok(()),
        false => Err("not all of it came".into()),
    }
}

/// The cipher of a federation, which is the fastest where processors have instructions for it.
fn same_cipher() {
    let cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    // Fails only where it was done before.
    let _ = CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() }.install_default();
}

/// A service with one method, which takes an update.
#[derive(Clone)]
struct Sink(Receiver);

impl NamedService for Sink {
    const NAME: &'static str = "fedburn.Sink";
}

impl Service<http::Request<Body>> for Sink {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self(receiver) = *self;
        let mut method = tonic::server::Grpc::new(Plain).max_decoding_message_size(2 * CHUNK);
        Box::pin(async move { Ok(method.client_streaming(Upload(receiver), request).await) })
    }
}

struct Upload(Receiver);

impl ClientStreamingService<Bytes> for Upload {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let update = Update::new(self.0.keep, self.0.bytes);
        Box::pin(async move {
            let (mut messages, mut came) = (request.into_inner(), 0);
            while let Some(message) = messages.message().await? {
                let (at, len) = (came, message.len());
                came += len;
                update.put(at, vec![message]).await;
            }
            Ok(Response::new(Bytes::copy_from_slice(&(came as u64).to_be_bytes())))
        })
    }
}

/// Messages are bytes as they are.
#[derive(Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(2 * CHUNK, CHUNK)
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(2 * CHUNK, CHUNK)
    }
}

/// What may be sent and not yet taken, of a stream and of all.
const WINDOW: u32 = 16 << 20;
/// Bytes of one HTTP/2 frame.
const FRAME: u32 = 1 << 20;
