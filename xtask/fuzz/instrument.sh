#!/bin/sh
# Calls rustc for a crate of this workspace so that libFuzzer sees which of its branches an input takes and what it
# compares. Other crates are as everywhere: what they do is told by ours that call them, and their generic code is
# compiled into ours.
case " $* " in *" build_script_"*) exec "$@" ;; esac
exec "$@" \
    -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares
