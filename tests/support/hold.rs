//! Holds up a process that loads kernel programs, until the test lets it go on.
//!
//! The kernel asks the test about each such call (seccomp_unotify(2)); the process does not notice.

use std::io;
use std::mem::{self, zeroed};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// linux/bpf.h `enum bpf_cmd`.
const BPF_PROG_LOAD: u32 = 5;

/// The number of the seccomp descriptor in the process; far from those that it opens itself.
const LISTENER: i32 = 900;

/// Time between two checks whether the test has decided, in nanoseconds.
const LOOK: i64 = 5_000_000;

/// Held-up loads of kernel programs. Those of the main thread are not held up. Dropping this lets them go on.
#[derive(Debug)]
pub struct HeldLoads {
    verdict: Sender<Verdict>,
}

/// What happens to the loads.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Pass,
    /// They fail as if the verifier rejected the program.
    Fail,
}

impl HeldLoads {
    /// Installs the seccomp filter in a command.
    pub(crate) fn prepare(command: &mut Command) {
        // SAFETY: between fork and exec the closure only makes system calls.
        unsafe { command.pre_exec(ask) };
    }

    /// Answers the questions about a process that was started by such a command.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let main = Pid::from_raw(pid.cast_signed()).context("a process has a number")?;
        let process = pidfd_open(main, PidfdFlags::empty())?;
        let listener = pidfd_getfd(process, LISTENER, PidfdGetfdFlags::empty())
            .context("the descriptor of seccomp notifications")?;
        let (verdict, told) = mpsc::channel();
        thread::spawn(move || answer(&listener, pid, &told));
        Ok(Self { verdict })
    }

    /// Lets them go on.
    pub(crate) fn pass(self) {
        drop(self);
    }

    /// Makes them fail.
    pub(crate) fn fail(self) {
        // An error: the thread has ended with the process.
        let _ = self.verdict.send(Verdict::Fail);
    }
}

/// Makes the kernel ask about every program that this process loads from here on.
fn ask() -> io::Result<()> {
    // The lower 32 bits of the argument.
    let low = if cfg!(target_endian = "little") { 0 } else { 4 };
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let unless = |k, jf| libc::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf, k };
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut filter = [
        statement(LOAD_WORD, mem::offset_of!(libc::seccomp_data, nr) as u32),
        unless(libc::SYS_bpf as u32, 3),
        statement(LOAD_WORD, mem::offset_of!(libc::seccomp_data, args) as u32 + low),
        unless(BPF_PROG_LOAD, 1),
        statement(RETURN, libc::SECCOMP_RET_USER_NOTIF),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: `program` and the filter it points to live beyond the call.
    let listener =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    // SAFETY: makes a descriptor of one that is ours, or fails. The first one ends with exec, the second does not.
    if listener < 0 || unsafe { libc::dup2(listener as i32, LISTENER) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Answers until the process has ended.
fn answer(listener: &OwnedFd, main: u32, told: &Receiver<Verdict>) {
    let (mut held, mut verdict) = (Vec::new(), None);
    loop {
        verdict = verdict.or_else(|| match told.try_recv() {
            Ok(verdict) => Some(verdict),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Verdict::Pass),
        });
        if let Some(verdict) = verdict {
            held.drain(..).for_each(|id| respond(listener, id, verdict));
        }
        let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: LOOK }));
        let events = fds[0].revents();
        if events.contains(PollFlags::HUP) {
            return;
        }
        if events.contains(PollFlags::IN)
            && let Some((id, thread)) = receive(listener)
        {
            if thread == main { respond(listener, id, Verdict::Pass) } else { held.push(id) }
        }
    }
}

/// The next call, and the thread that makes it; `None`: it is gone.
fn receive(listener: &OwnedFd) -> Option<(u64, u32)> {
    // SAFETY: plain numbers; the kernel wants zeros.
    let mut asked: libc::seccomp_notif = unsafe { zeroed() };
    // SAFETY: the structure is the one that this request writes.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) };
    (result == 0).then_some((asked.id, asked.pid))
}

fn respond(listener: &OwnedFd, id: u64, verdict: Verdict) {
    let (error, flags) = match verdict {
        Verdict::Pass => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Verdict::Fail => (-libc::EINVAL, 0),
    };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the structure is the one that this request reads. A thread that is gone needs no answer.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
}
