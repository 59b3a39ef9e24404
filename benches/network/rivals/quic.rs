//! Bare QUIC: chunks on streams of their own, as many at once as a federation's.

use std::error::Error;

use bytes::Bytes;
use fedburn_transport::quic::{ClientConfig, JoinString, NodeIdentity, QuicConfig, ServerIdentity, bare};
use quinn::{Connection, Endpoint, RecvStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::{CHUNK, Keys, Receiver, Update};

/// Listens for one sender; says where.
pub fn listen(runtime: &Runtime, keys: &Keys<'_>, receiver: Receiver) -> Result<String, Box<dyn Error>> {
    let _inside = runtime.enter();
    let identity = ServerIdentity::open(&keys.server())?;
    let config = QuicConfig { listen: "127.0.0.1:0".parse()?, ..Default::default() };
    let (endpoint, join) = bare::listen(&config, &identity)?;
    runtime.spawn(async move { receive(&endpoint, receiver).await });
    Ok(join.to_string())
}

/// Takes one update after another until the sender leaves.
async fn receive(endpoint: &Endpoint, receiver: Receiver) -> Option<()> {
    let connection = endpoint.accept().await?.await.ok()?;
    bare::take_chunks(&connection);
    loop {
        let (update, mut came, mut chunks) = (Update::new(receiver.keep, receiver.bytes), 0, JoinSet::new());
        for _ in 0..receiver.bytes.div_ceil(CHUNK) {
            let stream = connection.accept_uni().await.ok()?;
            chunks.spawn(chunk(stream, update.clone()));
        }
        while let Some(chunk) = chunks.join_next().await {
            came += chunk.ok()??;
        }
        // That it has all come is said by a stream of its own.
        let mut done = connection.open_uni().await.ok()?;
        done.write_all(&(came as u64).to_le_bytes()).await.ok()?;
        done.finish().ok()?;
    }
}

/// Reads one chunk behind its number; gives its bytes.
async fn chunk(mut stream: RecvStream, update: Update) -> Option<usize> {
    let (mut number, mut came, mut parts) = ([0; 4], 0, Vec::new());
    stream.read_exact(&mut number).await.ok()?;
    let mut next = [const { Bytes::new() }; 64];
    while let Some(count) = stream.read_chunks(&mut next).await.ok()? {
        came += next[..count].iter().map(Bytes::len).sum::<usize>();
        if let Update::Kept(_) = update {
            parts.extend(next[..count].iter_mut().map(std::mem::take));
        }
    }
    update.put(u32::from_le_bytes(number) as usize * CHUNK, parts).await;
    Some(came)
}

/// Connects as the node that is enrolled.
pub async fn connect(to: &str, keys: &Keys<'_>) -> Result<Connection, Box<dyn Error>> {
    let join: JoinString = to.parse()?;
    Ok(bare::connect(&join, NodeIdentity::open(&keys.node())?, ClientConfig::default()).await?)
}

/// Sends all of it, some chunks at a time.
pub async fn send(connection: &Connection, payload: &Bytes) -> Result<(), Box<dyn Error>> {
    let mut sending = JoinSet::new();
    for (number, at) in (0_u32..).zip((0..payload.len()).step_by(CHUNK)) {
        if sending.len() == bare::CHUNKS_IN_FLIGHT as usize
            && let Some(sent) = sending.join_next().await
        {
            sent??;
        }
        let (connection, chunk) = (connection.clone(), payload.slice(at..payload.len().min(at + CHUNK)));
        sending.spawn(async move {
            let mut stream = connection.open_uni().await?;
            stream.write_all(&number.to_le_bytes()).await?;
            stream.write_chunk(chunk).await?;
            let _ = stream.finish();
            Ok::<(), quinn::WriteError>(())
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    let came = connection.accept_uni().await?.read_to_end(8).await?;
    match came == (payload.len() as u64).to_le_bytes() {
        true => Ok(()),
        false => Err("not all of it came".into()),
    }
}
