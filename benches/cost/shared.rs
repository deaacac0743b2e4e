//! What `--shared` costs, against libtest's own threads.

use crate::Bench;
use crate::fixture;
use crate::measure::{Timed, interleaved};
use crate::table::Row;

pub(crate) fn shared(bench: &mut Bench) {
    const THREADS: [usize; 2] = [8, 32];
    for threads in THREADS {
        bench.table.group(
            &format!("bodies of 5 ms on {threads} threads, debug"),
            "the whole command by 1000; all in one process",
        );
        let run = |target: &str, more: &[&str]| {
            let mut command = fixture::clean(bench.debug.binary(target));
            command.args(["-q", &format!("--test-threads={threads}")]).args(more);
            Timed::new(command, 1000)
        };
        let commands = [run("ms_libtest", &[]), run("ms_harness", &["--shared"]), run("ms_harness", &[])];
        let [libtest, shared, guarded] = interleaved(bench.rounds(9), commands);
        let name = "libtest, threads";
        bench.table.row(&Row::time(name, &libtest));
        bench.table.row(&Row::time("childproof --shared", &shared).over(&libtest, name).reach(1.2));
        bench.table.row(&Row::time("childproof, a process a test", &guarded).over(&libtest, name));
    }
}
