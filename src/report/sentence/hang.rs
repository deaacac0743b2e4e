//! Where a test was when its time was over, in words.

use std::time::Duration;

use crate::diagnosis::{Hang, RunningTest};
use crate::report::escape;
use crate::report::words::{duration, enumerate, rough};

/// `the test did not return within its timeout of 1 s: it is at tests/a.rs:3:5.`
pub(super) fn timed_out(limit: Duration, hangs: Option<&Hang>, tests: &[RunningTest]) -> String {
    let limit = duration(limit);
    match tests {
        [] => {
            let hangs = hangs.map_or_else(String::new, |hang| format!(": it is {}", at(hang)));
            format!("the test did not return within its timeout of {limit}{hangs}.")
        }
        [test] => {
            let hangs = test.hang.as_ref().map_or_else(String::new, |hang| format!(": it is {}", at(hang)));
            let name = escape::text(&test.name);
            format!("test `{name}` did not return within the command's timeout of {limit}{hangs}.")
        }
        tests => format!(
            "{} tests did not return within the command's timeout of {limit}: {}.",
            tests.len(),
            list(tests, "is")
        ),
    }
}

/// `the run was cut while the test ran, 1 s after it began: it was at tests/a.rs:3:5.`
pub(super) fn cut(ran: Duration, hangs: Option<&Hang>, tests: &[RunningTest]) -> String {
    let hangs = match tests {
        [] => hangs.map_or_else(String::new, |hang| format!(": it was {}", at(hang))),
        [_] => format!(": test {}", list(tests, "was")),
        tests => format!(": tests {}", list(tests, "was")),
    };
    format!("the run was cut while the test ran, {} after it began{hangs}.", rough(ran))
}

/// `` `a` is at tests/a.rs:3:5 and `b` is at tests/a.rs:9:5 ``
fn list(tests: &[RunningTest], is: &str) -> String {
    let one = |test: &RunningTest| {
        let at = test.hang.as_ref().map_or_else(|| "running".to_owned(), at);
        format!("`{}` {is} {at}", escape::text(&test.name))
    };
    enumerate(&tests.iter().map(one).collect::<Vec<String>>())
}

fn at(hang: &Hang) -> String {
    let place = &hang.place;
    match hang.in_block_on {
        false => format!("at {place}"),
        true => format!(
            "in the `block_on` at {place}, at which `.await` is not known (`#[tokio::test]` has it at the last statement)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Hang, RunningTest, cut, timed_out};
    use crate::recorder::call_site::SourceLocation;

    fn hang(line: u32, in_block_on: bool) -> Hang {
        Hang { place: SourceLocation { file: "src/a.rs".to_owned(), line, column: 5 }, in_block_on }
    }

    fn test(name: &str, line: u32) -> RunningTest {
        RunningTest { name: name.to_owned(), tid: 7, hang: Some(hang(line, false)) }
    }

    #[test]
    fn a_hang_is_named_with_its_test_and_line() {
        let limit = Duration::from_secs(3);
        let words = |hangs: Option<&Hang>, tests: &[RunningTest]| timed_out(limit, hangs, tests);
        assert_eq!(
            words(None, &[test("a", 3)]),
            "test `a` did not return within the command's timeout of 3 s: it is at src/a.rs:3:5."
        );
        assert_eq!(
            words(None, &[test("a", 3), test("b", 9)]),
            "2 tests did not return within the command's timeout of 3 s: `a` is at src/a.rs:3:5 and `b` is at src/a.rs:9:5."
        );
        assert_eq!(
            words(Some(&hang(3, true)), &[]),
            "the test did not return within its timeout of 3 s: it is in the `block_on` at src/a.rs:3:5, at which `.await` \
             is not known (`#[tokio::test]` has it at the last statement)."
        );
        assert!(cut(limit, None, &[test("a", 3)]).ends_with(": test `a` was at src/a.rs:3:5."));
    }
}
