//! Blobs on their way in.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream, VarInt};

use super::super::blob::Assembly;
use super::super::receive;
use super::super::stream::{StreamError, ask, close, read_end, read_header, read_payload};
use super::connect::{Dialer, on, unexpected};
use super::failure::Failure;
use crate::wire::{BlobRef, CloseCode, Extensions, GetChunks, GetManifest, Message, TransferId};

/// The downloads under way on any connection, by what their chunks carry.
#[derive(Default)]
pub(in super::super) struct Downloads {
    under_way: Mutex<BTreeMap<TransferId, Arc<Download>>>,
    next: AtomicU64,
}

struct Download {
    assembly: Arc<Assembly>,
    /// Bytes that came, verified or not.
    came: AtomicU64,
}

/// A download that is known to those who receive chunks, as long as this lives.
struct Registered<'a> {
    downloads: &'a Downloads,
    transfer: TransferId,
    download: Arc<Download>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.downloads.lock().remove(&self.transfer);
    }
}

impl Downloads {
    fn register(&self, assembly: Arc<Assembly>) -> Registered<'_> {
        let mut transfer = TransferId::default();
        transfer.0[..8].copy_from_slice(&self.next.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let download = Arc::new(Download { assembly, came: AtomicU64::new(0) });
        self.lock().insert(transfer, download.clone());
        Registered { downloads: self, transfer, download }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TransferId, Arc<Download>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches what is missing of a blob over one connection. What came before is in `partial`, and what came now stays
    /// there if the connection breaks.
    pub(in super::super) async fn fetch(
        &self,
        dialer: &Dialer,
        connection: &Connection,
        blob: &BlobRef,
        partial: &mut Option<Arc<Assembly>>,
    ) -> Result<Arc<Assembly>, Failure> {
        let assembly = match partial {
            Some(assembly) => assembly.clone(),
            None => partial.insert(begin(dialer, connection, blob).await?).clone(),
        };
        while !assembly.is_full() {
            self.fetch_chunks(dialer, connection, blob, &assembly).await?;
        }
        *partial = None;
        Ok(assembly)
    }

    async fn fetch_chunks(
        &self,
        dialer: &Dialer,
        connection: &Connection,
        blob: &BlobRef,
        assembly: &Arc<Assembly>,
    ) -> Result<(), Failure> {
        let registered = self.register(assembly.clone());
        let have = assembly.have();
        let asked = GetChunks {
            root: blob.root,
            ranges: have.missing_ranges(),
            transfer: registered.transfer,
            ext: Extensions::default(),
        };
        // The server answers when others have had their turn: it ends with the blob or the connection.
        let coming = match ask(connection, &asked).await {
            Ok(Message::ChunksComing(coming)) => coming.chunks,
            Ok(Message::Refused(refused)) => return Err(refused.into()),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => return Err(on(connection, error.into())),
        };
        let wanted = have.count() + coming;
        let progress = Duration::from_secs(dialer.config().progress_timeout_secs);
        let mut before = 0;
        loop {
            let changed = assembly.changed.notified();
            if assembly.have().count() >= wanted {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = changed => {}
                end = connection.closed() => return Err(super::failure::of_connection(&end)),
                () = tokio::time::sleep(progress) => {
                    let came = registered.download.came.load(Ordering::Relaxed);
                    if came == before {
                        close(connection, CloseCode::Slow, "the download does not go on");
                        return Err(Failure::Passing("the download does not go on".to_owned()));
                    }
                    before = came;
                }
            }
        }
    }

    /// Receives the chunks that the server sends on a connection.
    pub(in super::super) async fn receive(self: Arc<Self>, connection: Connection) {
        while let Ok(stream) = connection.accept_uni().await {
            tokio::spawn(chunk(self.clone(), connection.clone(), stream));
        }
    }
}

async fn begin(dialer: &Dialer, connection: &Connection, blob: &BlobRef) -> Result<Arc<Assembly>, Failure> {
    let asked = GetManifest { root: blob.root, ext: Extensions::default() };
    let answer = match dialer.expect(connection, &asked).await? {
        Message::BlobManifest(answer) => answer,
        other => return Err(unexpected(&other)),
    };
    let inline = answer.verify(blob)?;
    let assembly = Arc::new(Assembly::of_manifest(answer.manifest.clone())?);
    if let Some(bytes) = inline {
        let layout = answer.manifest.layout();
        for index in 0..layout.num_chunks() {
            let header = answer.manifest.header(TransferId::default(), index);
            if let (Some(header), Ok(payload)) = (header, layout.slice(index, &bytes)) {
                assembly.accept(&header, &[payload])?;
            }
        }
    }
    Ok(assembly)
}

async fn chunk(downloads: Arc<Downloads>, connection: Connection, mut stream: RecvStream) {
    let received = async {
        let header = read_header(&mut stream).await?;
        let Some(download) = downloads.lock().get(&header.transfer).cloned() else {
            // The rest of a download that was given up.
            let _ = stream.stop(VarInt::from_u32(CloseCode::Ok as u32));
            return Ok(());
        };
        download.assembly.expect(header.transfer, &header)?;
        let count = |bytes: usize| {
            download.came.fetch_add(bytes as u64, Ordering::Relaxed);
        };
        let parts = read_payload(&mut stream, &header, count).await?;
        let accepted = receive::accept(&download.assembly, header, parts).await;
        if let Err(e) = accepted {
            close(&connection, CloseCode::Protocol, &e.to_string());
        }
        read_end(&mut stream, &header).await
    };
    match received.await {
        Ok(()) | Err(StreamError::Lost(_)) => {}
        Err(e) => close(&connection, CloseCode::Protocol, &e.to_string()),
    }
}
