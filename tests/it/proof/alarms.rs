//! A test that leaves nothing is never said to leave something.

use crate::proof::fixture;

/// It has ended by itself, and the kernel frees its memory.
#[childproof::test]
fn an_exit_that_began_within_the_grace_is_waited_for() {
    let fixture = fixture();
    for target in ["harness", "stock"] {
        let ran = fixture.run(target, &["exits_slowly", "--test-threads=1"]);
        assert!(ran.stdout.contains("2 passed; 0 failed"), "{}", ran.all());
    }
}
