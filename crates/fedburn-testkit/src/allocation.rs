//! An allocator that counts, thread by thread, so that a test can say what a call held at most.
#![allow(unsafe_code, reason = "an allocator cannot be written without; it hands everything on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting for [`peak`]: a test makes it its `#[global_allocator]`.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// What `call` gives, and the bytes that it held at most beyond those held before, where [`Counting`] is the allocator.
/// What other threads hold does not count.
pub fn peak<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = call();
    (result, (PEAK.get() - before) as usize)
}

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Fails only while the thread ends, when nobody measures any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is the system allocator's own; counting touches no memory that is given out. Growing is left to the
// trait, which allocates, copies and frees: old and new count together.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(place, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    #[test]
    fn what_is_held_at_once_is_counted_and_what_was_freed_is_not() {
        let (kept, held) = peak(|| {
            drop(vec![0u8; 3_000]);
            drop(vec![0u8; 2_000]);
            vec![0u8; 1_000]
        });
        assert_eq!((kept.len(), held), (1_000, 3_000));
    }
}
