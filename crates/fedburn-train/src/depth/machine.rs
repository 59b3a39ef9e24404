//! How much memory the machine has to give.

use std::fs;
use std::sync::OnceLock;

use super::Bytes;

/// What the machine could give without swapping when this process first asked; nothing where it does not tell, which only
/// Linux does.
pub(super) fn available() -> Bytes {
    static AVAILABLE: OnceLock<Bytes> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let told = fs::read_to_string("/proc/meminfo").ok();
        told.and_then(|told| mem_available(&told)).unwrap_or_default()
    })
}

/// The line `MemAvailable:` of the file, in KiB there.
fn mem_available(told: &str) -> Option<Bytes> {
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1 << 10).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_available_memory_is_read_in_kibibytes() {
        let told = "MemTotal:       16000000 kB\nMemFree:  500 kB\nMemAvailable:    1024 kB\nBuffers: 7 kB\n";
        assert_eq!(mem_available(told), Some(Bytes(1 << 20)));
        for wrong in
            ["", "MemFree: 1 kB", "MemAvailable: x kB", "MemAvailable: 5 MB", "MemAvailable: 99999999999999999999 kB"]
        {
            assert_eq!(mem_available(wrong), None, "{wrong}");
        }
        assert_eq!(mem_available(&format!("MemAvailable: {} kB", u64::MAX)), None, "more than can be counted");
    }

    #[test]
    fn asked_again_the_answer_is_the_same() {
        let first = available();
        let held = vec![1u8; 1 << 20];
        assert_eq!((available(), held.len()), (first, 1 << 20));
        assert_eq!(first > Bytes(0), cfg!(target_os = "linux"));
    }
}
