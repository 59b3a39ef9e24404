//! UDP of a world of its own: every packet passes one queue, ordered by the time of its arrival and then by the order in
//! which packets were sent. What happens to a packet is drawn from the world's seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fedburn_core::Seed;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::trace::Trace;
use crate::quic::QuicError;
use crate::quic::surroundings::Sockets;

/// What the paths between hosts do to packets. Shares are of all packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Share that is lost.
    pub(super) loss: f64,
    /// Share that comes twice.
    pub(super) duplication: f64,
    /// Share with a flipped bit.
    pub(super) corruption: f64,
    /// Share that is held back, behind what was sent later.
    pub(super) reordering: f64,
    pub(super) latency: Duration,
    /// Added to the latency, drawn for each packet.
    pub(super) jitter: Duration,
    pub(super) bytes_per_second: u64,
    /// Longer packets are lost.
    pub(super) mtu: usize,
}

impl Weather {
    /// A good line.
    pub(super) const CALM: Self = Self {
        loss: 0.0,
        duplication: 0.0,
        corruption: 0.0,
        reordering: 0.0,
        latency: Duration::from_millis(5),
        jitter: Duration::ZERO,
        bytes_per_second: 10 << 20,
        mtu: 1_452,
    };
}

/// The paths between all hosts.
pub(super) struct Network {
    state: Mutex<State>,
    /// Told when a packet is under way that comes before all others.
    earlier: Notify,
    origin: Instant,
}

struct State {
    rng: ChaCha8Rng,
    weather: Weather,
    /// Hosts whose packets are lost on their way out, and in.
    mute: BTreeSet<IpAddr>,
    deaf: BTreeSet<IpAddr>,
    /// The sockets of processes that live, by their number, which is never given twice.
    sockets: BTreeMap<u64, Bound>,
    opened: u64,
    under_way: BTreeMap<(Instant, u64), Packet>,
    sent: u64,
    /// When the line to a host is free again.
    free: BTreeMap<IpAddr, Instant>,
    next_port: u16,
    trace: Trace,
}

struct Bound {
    /// The address by which others know it.
    outside: SocketAddr,
    packets: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Network {
    pub(super) fn new(seed: Seed, weather: Weather) -> Arc<Self> {
        let state = State {
            rng: seed.rng(),
            weather,
            mute: BTreeSet::new(),
            deaf: BTreeSet::new(),
            sockets: BTreeMap::new(),
            opened: 0,
            under_way: BTreeMap::new(),
            sent: 0,
            free: BTreeMap::new(),
            next_port: 10_000,
            trace: Trace::new(std::env::var_os("FEDBURN_SIMNET_VERBOSE").is_some()),
        };
        Arc::new(Self { state: Mutex::new(state), earlier: Notify::new(), origin: Instant::now() })
    }

    /// Virtual time since the world began.
    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    pub(super) fn origin(&self) -> Instant {
        self.origin
    }

    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        self.lock().trace.note(self.now(), what);
    }

    pub(super) fn take_trace(&self) -> Trace {
        std::mem::take(&mut self.lock().trace)
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Cuts a host's way out, its way in, or both.
    pub(super) fn cut(&self, host: IpAddr, out: bool, into: bool) {
        let mut state = self.lock();
        if out {
            state.mute.insert(host);
        }
        if into {
            state.deaf.insert(host);
        }
    }

    pub(super) fn heal(&self, host: IpAddr) {
        let mut state = self.lock();
        state.mute.remove(&host);
        state.deaf.remove(&host);
    }

    /// Gives every socket of the host another outside address, as a home router does that has forgotten.
    pub(super) fn rebind(&self, host: IpAddr) {
        let mut state = self.lock();
        let State { sockets, next_port, .. } = &mut *state;
        for socket in sockets.values_mut().filter(|socket| socket.outside.ip() == host) {
            *next_port += 1;
            socket.outside.set_port(*next_port);
        }
    }

    /// Takes the host's sockets away: what it still does, nobody sees.
    pub(super) fn kill(&self, host: IpAddr) {
        self.lock().sockets.retain(|_, socket| socket.outside.ip() != host);
    }

    /// Lets packets arrive, until the world ends.
    pub(super) async fn deliver(self: Arc<Self>) {
        loop {
            let earlier = self.earlier.notified();
            let next = self.lock().under_way.first_key_value().map(|((at, _), _)| *at);
            match next {
                None => earlier.await,
                Some(at) => tokio::select! {
                    biased;
                    () = sleep_until(at) => self.arrive(),
                    () = earlier => {}
                },
            }
        }
    }

    fn arrive(&self) {
        let (mut state, now) = (self.lock(), Instant::now());
        while let Some(entry) = state.under_way.first_entry().filter(|entry| entry.key().0 <= now) {
            let Packet { from, to, bytes } = entry.remove();
            let State { sockets, trace, .. } = &mut *state;
            // An address that was given up leads nowhere.
            let Some(socket) = sockets.values_mut().find(|socket| socket.outside == to) else { continue };
            if socket.packets.len() == INBOX {
                continue;
            }
            trace.note(now - self.origin, format_args!("{from} > {to} {}", bytes.len()));
            socket.packets.push_back((from, bytes));
            if let Some(waker) = socket.waker.take() {
                waker.wake();
            }
        }
    }

    fn send(&self, socket: u64, to: SocketAddr, bytes: &[u8]) {
        let (mut state, now) = (self.lock(), Instant::now());
        let Some(from) = state.sockets.get(&socket).map(|socket| socket.outside) else { return };
        let first = state.under_way.first_key_value().map(|((at, _), _)| *at);
        let at = now - self.origin;
        let State { rng, weather, .. } = &mut *state;
        let w = *weather;
        let lost = rng.random_bool(w.loss);
        let copies = if rng.random_bool(w.duplication) { 2 } else { 1 };
        let flipped = (rng.random_bool(w.corruption) && bytes.len() > HEADERS)
            .then(|| (rng.random_range(HEADERS..bytes.len()), 1u8 << rng.random_range(0..8)));
        let arrivals: Vec<Duration> = (0..copies)
            .map(|_| {
                let late = if rng.random_bool(w.reordering) { w.latency * 3 } else { Duration::ZERO };
                w.latency + late + w.jitter.mul_f64(rng.random_range(0.0..1.0))
            })
            .collect();
        let cut = state.mute.contains(&from.ip()) || state.deaf.contains(&to.ip());
        let free = state.free.get(&to.ip()).copied().unwrap_or(now).max(now);
        let lost = lost || cut || bytes.len() > w.mtu || free - now > FULL;
        state.trace.note(at, format_args!("{from} . {to} {}{}", bytes.len(), if lost { " lost" } else { "" }));
        if lost {
            return;
        }
        let sent = free + Duration::from_secs_f64(bytes.len() as f64 / w.bytes_per_second as f64);
        state.free.insert(to.ip(), sent);
        for arrival in arrivals {
            let mut bytes = bytes.to_vec();
            if let Some((byte, bit)) = flipped {
                bytes[byte] ^= bit;
            }
            let number = state.sent;
            state.sent += 1;
            state.under_way.insert((sent + arrival, number), Packet { from, to, bytes });
        }
        if first.is_none_or(|first| state.under_way.first_key_value().is_some_and(|((at, _), _)| *at < first)) {
            self.earlier.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The sockets of one host.
pub(super) struct Host {
    pub(super) network: Arc<Network>,
    pub(super) address: IpAddr,
}

impl Sockets for Host {
    fn open(&self, address: SocketAddr) -> Result<Arc<dyn AsyncUdpSocket>, QuicError> {
        let mut state = self.network.lock();
        (state.next_port, state.opened) = (state.next_port + 1, state.opened + 1);
        let port = if address.port() == 0 { state.next_port } else { address.port() };
        let (number, local) = (state.opened, SocketAddr::new(self.address, port));
        state.sockets.insert(number, Bound { outside: local, packets: VecDeque::new(), waker: None });
        Ok(Arc::new(Socket { network: self.network.clone(), number, local }))
    }
}

struct Socket {
    network: Arc<Network>,
    number: u64,
    local: SocketAddr,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.local)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        assert_eq!(transmit.segment_size, None, "one packet a call, as `max_transmit_segments` says");
        self.network.send(self.number, transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.lock();
        // A process that was killed hears nothing.
        let Some(socket) = state.sockets.get_mut(&self.number) else { return Poll::Pending };
        let mut came = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((addr, bytes)) = socket.packets.pop_front() else { break };
            let len = bytes.len();
            buffer[..len].copy_from_slice(&bytes);
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
            came += 1;
        }
        if came == 0 {
            socket.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(came))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    /// Packet sizes are found out as on a real path.
    fn may_fragment(&self) -> bool {
        false
    }
}

/// Packets can always be sent; what is too much is lost on the way.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Packets that wait at a socket.
const INBOX: usize = 1_024;
/// Packets are lost where they would wait for longer.
const FULL: Duration = Duration::from_millis(250);
/// Corruption keeps off the bytes in front: a packet with a wrong header belongs to no connection and is lost, which
/// packets are anyway.
const HEADERS: usize = 64;
