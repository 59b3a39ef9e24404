//! What the measuring programs share.

use std::io;

/// Peak resident memory of this process in MiB, as the kernel tells it (`VmHWM`).
///
/// # Errors
/// Where the kernel does not tell it: elsewhere than on Linux.
pub fn peak_mib() -> io::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let kib: f64 = kib.ok_or_else(|| io::Error::other("the kernel does not tell VmHWM"))?;
    Ok(kib / 1024.0)
}
