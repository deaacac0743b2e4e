//! Where a blocked thread is in its program: its registers by ptrace(2), and the frames above them
//! by the unwind tables that its program has mapped.
//!
//! Nothing of the target is run for that, so it works in a process that hangs on a lock, and in a
//! fork of a threaded one. A thread that was looked at stays stopped until it is killed: let go, it
//! might find its call interrupted (`epoll_wait` is not restarted, signal(7)) and run on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, LittleEndian, Pointer, Register, RegisterRule,
    UnwindContext, UnwindSection,
};
use nix::libc;

use super::maps::{Address, Maps};
use crate::sys::{self, ChildState, Children, Pid};

/// The most frames of one thread.
const FRAMES: usize = 64;
/// How long threads may take to stop, all together, and how long each may then. One that is in an
/// uninterruptible wait does not.
const STOP: Duration = Duration::from_millis(100);
const STOP_EACH: Duration = Duration::from_millis(2);
/// The most of a module's unwind tables that is read, in bytes.
const TABLES: u64 = 64 << 20;

/// Unwinds threads of processes that have the same program mapped at the same place: a test and
/// its forks. Their tables are read once.
#[derive(Default)]
pub(crate) struct Unwinder {
    modules: HashMap<(String, u64), Option<Tables>>,
    /// How long threads took to stop so far.
    stopping: Duration,
}

/// The unwind tables of one module, as they lie in memory.
struct Tables {
    header: Vec<u8>,
    frames: Vec<u8>,
    bases: BaseAddresses,
}

impl Unwinder {
    /// The addresses of a thread's frames, the innermost first. Empty if it may not be traced.
    /// Stops the thread for good.
    pub(crate) fn frames(&mut self, pid: Pid, tid: Pid, maps: &Maps) -> Vec<Address> {
        let begin = Instant::now();
        let found = registers(tid, STOP.saturating_sub(self.stopping).max(STOP_EACH));
        self.stopping += begin.elapsed();
        let Some(mut registers) = found else { return Vec::new() };
        let mut context = UnwindContext::new();
        let mut frames = Vec::new();
        while let Some(address) = maps.locate(registers.pc) {
            let tables = self.tables(pid, &address.module, maps);
            frames.push(address);
            let inner = registers.stack_pointer();
            let next = tables.and_then(|tables| tables.step(pid, &registers, &mut context));
            // The stack grows down: whoever called lies above.
            match next.filter(|next| next.pc != 0 && next.stack_pointer() > inner) {
                Some(next) if frames.len() < FRAMES => registers = next,
                _ => break,
            }
        }
        frames
    }

    fn tables(&mut self, pid: Pid, module: &str, maps: &Maps) -> Option<&Tables> {
        let base = maps.base(module)?;
        self.modules.entry((module.to_owned(), base)).or_insert_with(|| Tables::read(pid, base)).as_ref()
    }
}

/// The registers of one frame, by their numbers in DWARF.
#[derive(Clone)]
struct Registers {
    pc: u64,
    values: [Option<u64>; REGISTERS],
}

const REGISTERS: usize = 33;

#[cfg(target_arch = "x86_64")]
mod arch {
    /// The numbers of System V's ABI for this machine, in the order of DWARF.
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
    /// The numbers of the procedure call standard for this machine.
    pub(super) const STACK_POINTER: u16 = 31;
    pub(super) const RETURN_ADDRESS: u16 = 30;

    pub(super) fn read(registers: &nix::libc::user_regs_struct) -> (u64, Vec<u64>) {
        let mut values = registers.regs.to_vec();
        values.push(registers.sp);
        (registers.pc, values)
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn registers(tid: Pid, patience: Duration) -> Option<Registers> {
    use nix::sys::ptrace;
    let thread = nix::unistd::Pid::from_raw(tid);
    ptrace::seize(thread, ptrace::Options::empty()).ok()?;
    let stopped = ptrace::interrupt(thread).is_ok() && has_stopped(tid, patience);
    let read = if stopped { ptrace::getregs(thread).ok() } else { None };
    let (pc, numbered) = arch::read(&read?);
    let mut values = [None; REGISTERS];
    for (value, number) in values.iter_mut().zip(numbered) {
        *value = Some(number);
    }
    Some(Registers { pc, values })
}

/// On other machines the report says that no stack was read.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn registers(_: Pid, _: Duration) -> Option<Registers> {
    None
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn has_stopped(tid: Pid, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        match sys::waitid(Some(tid), libc::WSTOPPED) {
            Ok(Children::Ready(child)) => return matches!(child.state, ChildState::Trapped(_)),
            Ok(Children::Quiet) => {}
            Ok(Children::None) | Err(_) => return false,
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        // Its stop raises SIGCHLD, which a supervisor has blocked.
        sys::wait_for_signal(libc::SIGCHLD, left);
    }
}

impl Registers {
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
        let segments = segments(&sys::read_memory(pid, base, 64)?, |offset, size| {
            sys::read_memory(pid, base.checked_add(offset)?, size)
        })?;
        let first = segments.iter().find(|segment| segment.kind == LOAD)?;
        // Where address 0 of the file would lie.
        let bias = base.wrapping_sub(first.address & !0xfff);
        let header = segments.iter().find(|segment| segment.kind == EH_FRAME_HEADER)?;
        let header_at = bias.wrapping_add(header.address);
        let header = sys::read_memory(pid, header_at, usize::try_from(header.size.min(TABLES)).ok()?)?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(header_at);
        let parsed = EhFrameHdr::new(&header, LittleEndian).parse(&bases, 8).ok()?;
        let Pointer::Direct(frames_at) = parsed.eh_frame_ptr() else { return None };
        let end = segments
            .iter()
            .filter(|segment| segment.kind == LOAD)
            .map(|segment| (bias.wrapping_add(segment.address), segment.size))
            .find(|(start, size)| (*start..start.saturating_add(*size)).contains(&frames_at))
            .map(|(start, size)| start + size)?;
        let size = usize::try_from((end - frames_at).min(TABLES)).ok()?;
        let frames = sys::read_memory(pid, frames_at, size)?;
        Some(Tables { header, frames, bases: bases.set_eh_frame(frames_at) })
    }

    /// The registers as the caller of this frame had them.
    fn step(&self, pid: Pid, registers: &Registers, context: &mut UnwindContext<usize>) -> Option<Registers> {
        let header = EhFrameHdr::new(&self.header, LittleEndian).parse(&self.bases, 8).ok()?;
        let frames = EhFrame::new(&self.frames, LittleEndian);
        // A return address is behind the call, which may be the last instruction of a function.
        let address = registers.pc.checked_sub(1)?;
        let find = EhFrame::cie_from_offset;
        let fde = header.table()?.fde_for_address(&frames, &self.bases, address, find).ok()?;
        let row = fde.unwind_info_for_address(&frames, &self.bases, context, address).ok()?;
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                registers.get(*register)?.wrapping_add_signed(*offset)
            }
            // Stubs of the linker and signal frames: a blocked thread is rarely below one.
            CfaRule::Expression(_) => return None,
        };
        let word = |offset: i64| {
            let bytes = sys::read_memory(pid, cfa.wrapping_add_signed(offset), 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let mut next = registers.clone();
        for (register, rule) in row.registers() {
            let value = match rule {
                RegisterRule::Offset(offset) => word(*offset),
                RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
                RegisterRule::Register(other) => registers.get(*other),
                RegisterRule::SameValue => registers.get(*register),
                _ => None,
            };
            if let Some(slot) = next.values.get_mut(usize::from(register.0)) {
                *slot = value;
            }
        }
        next.pc = next.get(Register(arch::RETURN_ADDRESS))?;
        // Pointer authentication signs return addresses in the bits that no address has.
        #[cfg(target_arch = "aarch64")]
        {
            next.pc &= (1 << 48) - 1;
        }
        if let Some(slot) = next.values.get_mut(usize::from(arch::STACK_POINTER)) {
            *slot = Some(cfa);
        }
        Some(next)
    }
}

const LOAD: u32 = 1;
const EH_FRAME_HEADER: u32 = 0x6474_e550;

pub(super) struct Segment {
    kind: u32,
    address: u64,
    size: u64,
}

/// The program headers of a 64-bit little-endian ELF file (elf(5)). `read` gives some of its bytes.
pub(super) fn segments(header: &[u8], read: impl Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Vec<Segment>> {
    let u16_at = |bytes: &[u8], at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if header.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (offset, size, count) = (u64_at(header, 32)?, u16_at(header, 54)?, u16_at(header, 56)?);
    let table = read(offset, usize::from(size) * usize::from(count))?;
    if size < 56 {
        return None;
    }
    table
        .chunks_exact(usize::from(size))
        .map(|entry| {
            Some(Segment { kind: u32_at(entry, 0)?, address: u64_at(entry, 16)?, size: u64_at(entry, 40)? })
        })
        .collect()
}
