//! What the measuring programs share.

pub mod rounds;

use std::io;

/// Lets [`peak_mib`] begin anew from what is resident now.
///
/// # Errors
/// Where the kernel does not allow it: elsewhere than on Linux.
pub fn reset_peak() -> io::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5")
}

/// Peak resident memory of this process in MiB since its start or [`reset_peak`], as the kernel tells it (`VmHWM`).
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
