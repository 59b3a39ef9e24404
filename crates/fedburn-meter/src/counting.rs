//! An allocator that counts, thread by thread.
#![allow(unsafe_code, reason = "an allocator cannot be written without; it hands everything on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting: a program or a test makes it its `#[global_allocator]`.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// Whether somebody counts what the calling thread allocates.
pub fn is_counting() -> bool {
    // No thread gets to this line without having allocated: that is how it got its name, or `main` its arguments.
    COUNTED.get()
}

/// Bytes that the calling thread has asked for and not freed, less what it freed for others.
pub fn held() -> i64 {
    HELD.get()
}

/// The most that [`held`] has been on the calling thread since the last [`restart`].
pub fn most() -> i64 {
    MOST.get()
}

/// Lets [`most`] begin anew.
pub fn restart() {
    MOST.set(HELD.get());
}

/// What `call` gives, and the bytes that the calling thread held at most meanwhile beyond those that it held before; 0
/// where nobody counts. Calls may lie within each other.
pub fn peak<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let (before, outer) = (held(), most());
    restart();
    let result = call();
    let inner = most();
    MOST.set(outer.max(inner));
    (result, usize::try_from(inner - before).unwrap_or(0))
}

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
    static HELD: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // Fails only while the thread ends, when nobody measures any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
        let _ = COUNTED.try_with(|counted| counted.set(true));
    });
}

// SAFETY: every call is the system allocator's own; counting touches no memory that is given out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Where the system has to move it, old and new are there at once.
        count(size as i64);
        count(-(layout.size() as i64));
        unsafe { System.realloc(place, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    #[test]
    fn what_is_held_at_once_is_counted_and_what_was_freed_is_not() {
        assert!(is_counting());
        let (kept, most) = peak(|| {
            drop(vec![0u8; 3_000]);
            drop(vec![1u8; 2_000]);
            vec![0u8; 1_000]
        });
        assert_eq!((kept.len(), most), (1_000, 3_000));
    }

    #[test]
    fn what_grows_is_there_twice_for_a_moment() {
        let ((), most) = peak(|| {
            let mut list: Vec<u8> = Vec::with_capacity(1_000);
            list.reserve_exact(4_000);
        });
        assert_eq!(most, 5_000);
    }

    #[test]
    fn a_measurement_within_another_leaves_it_whole() {
        let (inner, outer) = peak(|| {
            drop(vec![0u8; 5_000]);
            let kept = vec![0u8; 500];
            let inner = peak(|| drop(vec![0u8; 4_000])).1;
            drop(kept);
            inner
        });
        assert_eq!((inner, outer), (4_000, 5_000));
        let (_, outer) = peak(|| {
            let kept = vec![0u8; 2_000];
            peak(|| drop(vec![0u8; 4_000]));
            drop(kept);
        });
        assert_eq!(outer, 6_000);
    }

    #[test]
    fn other_threads_count_for_themselves() {
        let (from_there, most) = peak(|| thread::spawn(|| peak(|| vec![0u8; 1 << 20])).join().unwrap());
        assert_eq!(from_there.1, 1 << 20);
        assert!(most < 1 << 16, "{most} bytes, of which a thread takes some");
        let before = held();
        drop(from_there);
        assert_eq!(before - held(), 1 << 20, "taken off the thread that frees");
    }
}
