//! Choice of the instruction set at run time, and scratch memory that outlives a call.

use std::cell::RefCell;
use std::mem;

use pulp::{Simd, WithSimd};

/// Runs `operation` with the widest vectors that this processor has.
pub(super) fn dispatch<Op: WithSimd>(operation: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = pulp::x86::V4::try_new() {
            return Simd::vectorize(simd, operation);
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, operation);
        }
    }
    pulp::Arch::new().dispatch(operation)
}

thread_local! {
    static POOL: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Zeroed memory from a pool of this thread: allocated once, not once a call.
pub(super) struct Scratch(Vec<f32>);

impl Scratch {
    pub(super) fn zeroed(len: usize) -> Self {
        match POOL.with_borrow_mut(Vec::pop) {
            Some(mut memory) if memory.capacity() >= len => {
                memory.clear();
                memory.resize(len, 0.0);
                Self(memory)
            }
            // What is too small is freed before there is more, and there is no more than asked for.
            small => {
                drop(small);
                Self(vec![0.0; len])
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let memory = mem::take(&mut self.0);
        // The pool is gone only while its thread ends; the memory is then simply freed.
        let _ = POOL.try_with(|pool| pool.borrow_mut().push(memory));
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
