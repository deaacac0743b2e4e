//! Finds where a blocked thread is in its program: reads its registers with ptrace(2), and the frames above
//! them with the unwind tables that its program has mapped.
//!
//! Runs no code in the target, so it works in a process that hangs on a lock, and in a fork of a threaded
//! one. The thread stays stopped until it is killed: if it were resumed, its call might return early
//! (`epoll_wait` is not restarted, signal(7)) and the thread would run on.
//! How a thread is read that has to go on is in [`unharmed`].

#[cfg(feature = "__engine")]
mod unharmed;

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use addr2line::gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, Encoding, EndianSlice, EvaluationResult, Expression,
    Location, NativeEndian, Pointer, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection,
    Value,
};
use nix::libc;

use super::elf::{self, SegmentKind};
use super::maps::{Address, Maps, VDSO};
use super::process::Stat;
use crate::sys::{self, ChildState, Children, Pid};

/// The most frames of one thread.
const FRAMES: usize = 64;
/// How long all threads together may take to stop, and how long each may take after that. On a busy machine a
/// thread waits for its turn to run.
const STOP: Duration = Duration::from_secs(1);
const STOP_EACH: Duration = Duration::from_millis(2);
/// How long to wait for a thread in an uninterruptible wait, which may not stop at all.
const STOP_UNINTERRUPTIBLE: Duration = Duration::from_millis(50);
/// The most bytes of a module's unwind tables that are read.
const TABLES: u64 = 64 << 20;

/// Unwinds threads of processes. Caches the tables of each module.
#[derive(Default)]
pub(crate) struct Unwinder {
    modules: HashMap<(String, u64), Option<Tables>>,
    /// Total time that threads have taken to stop so far.
    stopping: Duration,
    /// The threads that were to go on and had not stopped in time.
    #[cfg(feature = "__engine")]
    unstopped: Vec<super::waits::Thread>,
}

/// The unwind tables of one module, as mapped. They are the same in every process: their addresses are
/// relative to the tables.
struct Tables {
    header: Vec<u8>,
    frames: Vec<u8>,
    /// The positions of both tables, relative to the beginning of the module.
    header_at: u64,
    frames_at: u64,
}

impl Unwinder {
    /// The addresses of a thread's frames, innermost first. Empty if the thread may not be traced. Leaves the
    /// thread stopped.
    pub(crate) fn frames(&mut self, pid: Pid, tid: Pid, maps: &Maps) -> Vec<Address> {
        self.frames_and_stop(pid, tid, maps).0
    }

    /// The same, and what the thread has stopped for.
    pub(crate) fn frames_and_stop(&mut self, pid: Pid, tid: Pid, maps: &Maps) -> (Vec<Address>, Stop) {
        let begin = Instant::now();
        let found = registers(tid, STOP.saturating_sub(self.stopping).max(STOP_EACH));
        self.stopping += begin.elapsed();
        let Some((registers, stop)) = found else { return (Vec::new(), Stop::default()) };
        (self.unwind(&Memory::of(pid), registers, maps), stop)
    }

    /// The frames above the one that these are the registers of, and that one.
    fn unwind(&mut self, memory: &Memory, mut registers: Registers, maps: &Maps) -> Vec<Address> {
        let mut context = UnwindContext::new();
        let mut frames = Vec::new();
        while let Some(mut address) = maps.locate(registers.pc) {
            let (base, tables) = self.tables(memory.pid, &address.module, maps).unzip();
            // Look-ups expect a return address, which is one past the call.
            address.offset += u64::from(registers.is_interrupted);
            frames.push(address);
            let inner = registers.stack_pointer();
            let next = tables
                .zip(base)
                .and_then(|(tables, base)| tables.step(memory, base, &registers, &mut context));
            // The stack grows down, so the caller's frame is above. A signal handler may have a stack of its
            // own.
            let is_outer = |next: &Registers| next.is_interrupted || next.stack_pointer() > inner;
            match next.filter(|next| next.pc != 0 && is_outer(next)) {
                Some(next) if frames.len() < FRAMES => registers = next,
                _ => break,
            }
        }
        // No file has symbols for the kernel's code.
        frames.retain(|address| address.module != VDSO);
        frames
    }

    /// The tables of a module, and the address where it begins.
    fn tables(&mut self, pid: Pid, module: &str, maps: &Maps) -> Option<(u64, &Tables)> {
        let (base, inode) = (maps.base(module)?, maps.inode(module)?);
        let tables = self.modules.entry((module.to_owned(), inode));
        Some((base, tables.or_insert_with(|| Tables::read(pid, base)).as_ref()?))
    }
}

/// The registers of one frame, by their DWARF numbers.
#[derive(Clone)]
struct Registers {
    pc: u64,
    /// A signal arrived before the instruction at `pc`, so `pc` is not a return address.
    is_interrupted: bool,
    values: [Option<u64>; REGISTERS],
}

const REGISTERS: usize = 33;

#[cfg(target_arch = "x86_64")]
mod arch {
    /// Register numbers of this machine's System V ABI, in DWARF order.
    pub(super) const STACK_POINTER: u16 = 7;
    pub(super) const RETURN_ADDRESS: u16 = 16;

    pub(super) fn read(registers: &nix::libc::user_regs_struct) -> (u64, Vec<u64>) {
        let r = registers;
        let values = [
            r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ];
        (r.rip, values.to_vec())
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    /// Register numbers of this machine's procedure call standard.
    pub(super) const STACK_POINTER: u16 = 31;
    pub(super) const RETURN_ADDRESS: u16 = 30;

    pub(super) fn read(registers: &nix::libc::user_regs_struct) -> (u64, Vec<u64>) {
        let mut values = registers.regs.to_vec();
        values.push(registers.sp);
        (registers.pc, values)
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn registers(tid: Pid, patience: Duration) -> Option<(Registers, Stop)> {
    use nix::sys::ptrace;
    let thread = nix::unistd::Pid::from_raw(tid);
    ptrace::seize(thread, ptrace::Options::empty()).ok()?;
    let stop = ptrace::interrupt(thread).ok().and_then(|()| stop_of(tid, patience));
    let read = stop.and_then(|stop| Some((ptrace::getregs(thread).ok()?, stop)));
    let (read, stop) = read?;
    Some((Registers::of(&read), stop))
}

/// Not supported here; the report says that no stack was read.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn registers(_: Pid, _: Duration) -> Option<(Registers, Stop)> {
    None
}

/// What a traced thread has stopped for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stop {
    /// The signal that was taken from it and is to be given back when it goes on; 0 if none was.
    pub(crate) signal: i32,
}

impl Stop {
    /// `status` is that of waitid(2): a signal number, with the number of an event above it. A thread that was seized stops
    /// for an event (`PTRACE_EVENT_STOP`) when it was interrupted, and also when a stop signal has stopped it. Without an
    /// event it stops before a signal is delivered, which is lost unless the thread goes on with it ("Signal-delivery-stop",
    /// ptrace(2)).
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn of(status: i32) -> Stop {
        const EVENT: i32 = 8;
        Stop { signal: if status >> EVENT == 0 { status } else { 0 } }
    }
}

/// Waits until a traced thread has stopped.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn stop_of(tid: Pid, patience: Duration) -> Option<Stop> {
    let begin = Instant::now();
    let is_uninterruptible = || Stat::read(tid).is_none_or(|stat| stat.state == 'D');
    loop {
        match sys::waitid(Some(tid), libc::WSTOPPED) {
            Ok(Children::Ready(child)) => {
                return match child.state {
                    ChildState::Trapped(status) => Some(Stop::of(status)),
                    _ => None,
                };
            }
            Ok(Children::Quiet) => {}
            Ok(Children::None) | Err(_) => return None,
        }
        let left = patience.saturating_sub(begin.elapsed());
        if left.is_zero() || begin.elapsed() >= STOP_UNINTERRUPTIBLE && is_uninterruptible() {
            return None;
        }
        // The stop of the thread raises SIGCHLD, which a supervisor has blocked.
        sys::wait_for_signal(libc::SIGCHLD, left.min(STOP_UNINTERRUPTIBLE));
    }
}

impl Registers {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn of(read: &libc::user_regs_struct) -> Registers {
        let (pc, numbered) = arch::read(read);
        let mut values = [None; REGISTERS];
        for (value, number) in values.iter_mut().zip(numbered) {
            *value = Some(number);
        }
        Registers { pc, is_interrupted: false, values }
    }

    fn get(&self, register: Register) -> Option<u64> {
        *self.values.get(usize::from(register.0))?
    }

    fn stack_pointer(&self) -> u64 {
        self.get(Register(arch::STACK_POINTER)).unwrap_or(0)
    }
}

impl Tables {
    /// Reads the tables of the module that is mapped at `base`.
    fn read(pid: Pid, base: u64) -> Option<Tables> {
        let segments = elf::segments(&sys::read_memory(pid, base, elf::HEADER)?, |offset, size| {
            sys::read_memory(pid, base.checked_add(offset)?, size).map(Cow::Owned)
        })?;
        // The load address of the file's address 0.
        let bias = base.wrapping_sub(elf::base(&segments)?);
        let header = segments.iter().find(|segment| segment.kind == SegmentKind::UnwindIndex)?;
        let header_at = bias.wrapping_add(header.address);
        let header = sys::read_memory(pid, header_at, usize::try_from(header.size.min(TABLES)).ok()?)?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(header_at);
        let parsed = EhFrameHdr::new(&header, NativeEndian).parse(&bases, 8).ok()?;
        let Pointer::Direct(frames_at) = parsed.eh_frame_ptr() else { return None };
        let end = segments
            .iter()
            .filter(|segment| segment.kind == SegmentKind::Load)
            .map(|segment| (bias.wrapping_add(segment.address), segment.size))
            .find(|(start, size)| (*start..start.saturating_add(*size)).contains(&frames_at))
            .map(|(start, size)| start + size)?;
        let size = usize::try_from((end - frames_at).min(TABLES)).ok()?;
        let frames = sys::read_memory(pid, frames_at, size)?;
        let (header_at, frames_at) = (header_at.wrapping_sub(base), frames_at.wrapping_sub(base));
        Some(Tables { header, frames, header_at, frames_at })
    }

    /// Computes the caller's registers.
    fn step(
        &self,
        memory: &Memory,
        base: u64,
        registers: &Registers,
        context: &mut UnwindContext<usize>,
    ) -> Option<Registers> {
        let bases = BaseAddresses::default().set_eh_frame_hdr(base.wrapping_add(self.header_at));
        let bases = &bases.set_eh_frame(base.wrapping_add(self.frames_at));
        let header = EhFrameHdr::new(&self.header, NativeEndian).parse(bases, 8).ok()?;
        let frames = EhFrame::new(&self.frames, NativeEndian);
        // A return address is one past the call, which may be the last instruction of a function.
        let address = registers.pc.checked_sub(u64::from(!registers.is_interrupted))?;
        let find = EhFrame::cie_from_offset;
        let fde = header.table()?.fde_for_address(&frames, bases, address, find).ok()?;
        let row = fde.unwind_info_for_address(&frames, bases, context, address).ok()?;
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                registers.get(*register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => {
                evaluate(memory, expression.get(&frames).ok()?, fde.cie().encoding(), registers, None)?
            }
        };
        let word = |offset: i64| memory.word(cfa.wrapping_add_signed(offset));
        let value_of = |expression: &UnwindExpression<usize>| {
            evaluate(memory, expression.get(&frames).ok()?, fde.cie().encoding(), registers, Some(cfa))
        };
        let mut next = Registers { is_interrupted: fde.is_signal_trampoline(), ..registers.clone() };
        let mut restored = false;
        for (register, rule) in row.registers() {
            let value = match rule {
                RegisterRule::Offset(offset) => word(*offset),
                RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
                RegisterRule::Register(other) => registers.get(*other),
                RegisterRule::SameValue => registers.get(*register),
                RegisterRule::Expression(at) => value_of(at).and_then(|at| memory.word(at)),
                RegisterRule::ValExpression(value) => value_of(value),
                _ => None,
            };
            restored |= register.0 == arch::STACK_POINTER;
            if let Some(slot) = next.values.get_mut(usize::from(register.0)) {
                *slot = value;
            }
        }
        next.pc = next.get(Register(arch::RETURN_ADDRESS))?;
        // Pointer authentication puts a signature into the unused bits of a return address.
        #[cfg(target_arch = "aarch64")]
        {
            next.pc &= (1 << 48) - 1;
        }
        // A signal frame saves the stack pointer among the registers.
        if let Some(slot) = next.values.get_mut(usize::from(arch::STACK_POINTER)).filter(|_| !restored) {
            *slot = Some(cfa);
        }
        Some(next)
    }
}

/// The memory of a process, as far as it is asked for words.
struct Memory {
    pid: Pid,
    /// What was copied of it, and from where: the stack of a thread that may have gone on since.
    copied_from: u64,
    copy: Vec<u8>,
}

impl Memory {
    fn of(pid: Pid) -> Memory {
        Memory { pid, copied_from: 0, copy: Vec::new() }
    }

    fn word(&self, address: u64) -> Option<u64> {
        const WORD: usize = size_of::<u64>();
        let at = address.checked_sub(self.copied_from).and_then(|at| usize::try_from(at).ok());
        let copied = at.and_then(|at| self.copy.get(at..at.checked_add(WORD)?));
        let bytes = match copied {
            Some(bytes) => bytes.try_into().ok()?,
            None => sys::read_memory(self.pid, address, WORD)?.try_into().ok()?,
        };
        Some(u64::from_ne_bytes(bytes))
    }
}

/// Evaluates an expression of the unwind tables. Signal frames use them, since the kernel's saved registers
/// cannot be described by simpler rules.
fn evaluate(
    memory: &Memory,
    expression: Expression<EndianSlice<'_, NativeEndian>>,
    encoding: Encoding,
    registers: &Registers,
    initial: Option<u64>,
) -> Option<u64> {
    /// Limit on the number of operations: more than any real table has.
    const STEPS: u32 = 1000;
    let mut evaluation = expression.evaluation(encoding);
    evaluation.set_max_iterations(STEPS);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(registers.get(register)?)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                evaluation.resume_with_memory(Value::Generic(memory.word(address)?)).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.result().first()?.location {
        Location::Address { address } => Some(address),
        Location::Value { value } => value.to_u64(u64::MAX).ok(),
        _ => None,
    }
}
