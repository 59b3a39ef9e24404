//! Running code on the widest vectors of the processor, and on several threads.

use std::{panic, thread};

/// Code that the compiler vectorises by itself. All that it calls must be `#[inline(always)]`: only what is inlined is
/// compiled for the processor's own vectors.
pub(super) trait Kernel: Sized {
    /// What comes out.
    type Output;

    /// Does the work; `LANES` values side by side fit the registers.
    fn run<const LANES: usize>(self) -> Self::Output;
}

/// Runs `kernel` with the widest vectors that this processor has. Changes no bit of any result.
pub(super) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = pulp::x86::V4::try_new() {
            return simd.vectorize(Vectorized::<K, 128>(kernel));
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            return simd.vectorize(Vectorized::<K, 64>(kernel));
        }
    }
    kernel.run::<64>()
}

/// Runs `kernel` without vectors beyond the target's own (0), with AVX2 (1) or AVX-512 (2), where there are any.
#[cfg(test)]
pub(super) fn run_at<K: Kernel>(level: usize, kernel: K) -> Option<K::Output> {
    match level {
        0 => Some(kernel.run::<64>()),
        #[cfg(target_arch = "x86_64")]
        1 => Some(pulp::x86::V3::try_new()?.vectorize(Vectorized::<K, 64>(kernel))),
        #[cfg(target_arch = "x86_64")]
        2 => Some(pulp::x86::V4::try_new()?.vectorize(Vectorized::<K, 128>(kernel))),
        _ => None,
    }
}

/// A kernel as pulp wants it.
struct Vectorized<K, const LANES: usize>(K);

impl<K: Kernel, const LANES: usize> pulp::NullaryFnOnce for Vectorized<K, LANES> {
    type Output = K::Output;

    #[inline(always)]
    fn call(self) -> K::Output {
        self.0.run::<LANES>()
    }
}

/// `N` neighbouring values.
#[inline(always)]
pub(super) fn group<T, const N: usize>(values: &[T], at: usize) -> &[T; N] {
    values[at..].first_chunk().expect("kernels stay within the vectors, whose lengths were checked")
}

/// Into how many parts work on `touched` words of memory is cut: as many as there are threads, unless starting one
/// would take longer than the work.
pub(super) fn number_of_parts(threads: usize, touched: usize) -> usize {
    threads.min(touched / WORDS_PER_THREAD).max(1)
}

/// What one thread reads in some 100 microseconds.
const WORDS_PER_THREAD: usize = 1 << 20;

/// Does each part on a thread of its own, the first on this one. The results are in order.
pub(super) fn in_parts<P: Send, R: Send>(parts: impl Iterator<Item = P>, work: impl Fn(P) -> R + Sync) -> Vec<R> {
    let mut parts = parts;
    let Some(first) = parts.next() else { return Vec::new() };
    thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let mut results = vec![work(first)];
        results
            .extend(others.into_iter().map(|other| other.join().unwrap_or_else(|cause| panic::resume_unwind(cause))));
        results
    })
}
