//! Telling systemd how the server stands (`sd_notify(3)`). Where systemd did not start it, nothing happens.

use std::time::Duration;

/// Sends lines such as `READY=1` to the socket that systemd listens at.
#[cfg(unix)]
pub fn notify(state: &str) {
    use std::os::unix::net::UnixDatagram;
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| match path.to_str().and_then(|path| path.strip_prefix('@')) {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)
        }
        _ => socket.send_to(state.as_bytes(), &path),
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd.untold");
    }
}

/// There is no systemd here.
#[cfg(not(unix))]
pub fn notify(_: &str) {}

/// Shows systemd that the server lives, as often as it wants to see that, as long as `lives` returns.
pub fn watchdog(lives: impl Fn() + Send + 'static) -> std::io::Result<()> {
    let period = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok()).map(Duration::from_micros);
    let Some(period) = period else { return Ok(()) };
    let show = move || {
        loop {
            lives();
            notify("WATCHDOG=1");
            std::thread::sleep(period / 2);
        }
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(show).map(drop)
}
