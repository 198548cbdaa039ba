//! Our BIOS under QEMU: every cell of the matrix, or a sample of it by `--sample`.
//!
//! A program of its own: hundreds of machines, as many at a time as there are processors, and a
//! line for each when it ends.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use regression::matrix::{Cell, all, sample};
use regression::trial::Scenery;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let cells = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => all(),
        ["--sample"] => sample(),
        _ => {
            eprintln!("matrix: {arguments:?}: nothing or --sample is wanted");
            return ExitCode::FAILURE;
        }
    };
    let folder = tempfile::tempdir().expect("a scratch folder");
    let scenery = Scenery::new(folder.path());
    let start = Instant::now();
    let failures = try_all(&cells, &scenery);
    for (cell, reason) in &failures {
        println!("\nfailed: {cell}\n{reason}");
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    let (failed, seconds) = (failures.len(), start.elapsed().as_secs());
    let passed = cells.len() - failed;
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; in {seconds} s");
    ExitCode::from(u8::from(failed > 0))
}

/// Tries the cells on all processors; those that failed, with the reason.
fn try_all(cells: &[Cell], scenery: &Scenery) -> Vec<(Cell, String)> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut failures = Vec::new();
        while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let outcome = scenery.try_cell(cell);
            let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
            let (number, total) = (done.fetch_add(1, Ordering::Relaxed) + 1, cells.len());
            let seconds = start.elapsed().as_secs_f32();
            println!("{number:>3} of {total} {seconds:>6.1} s {verdict:6} {cell}");
            failures.extend(outcome.err().map(|error| (*cell, format!("{error:?}"))));
        }
        failures
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    })
}
