//! TCP options: those of a SYN are read, those of every other segment translated.
//!
//! Both walk a copy of constant size, byte by byte, and keep their place in memory that the kernel's verifier does not
//! track ([`Scratch`] lies in a map). So the verifier sees each byte once, at an index it knows. In a walk from option to
//! option it would follow every combination of lengths, which exceeds its limit of a million instructions.

use super::{Flow, NO_WINDOW_SCALE, flag, sighted};

/// Longest options (RFC 9293, section 3.1: a header has at most 60 bytes).
pub const MAX: usize = 40;

/// IANA, TCP option kind numbers.
pub mod kind {
    /// End of the list.
    pub const END: u8 = 0;
    /// Padding.
    pub const NOP: u8 = 1;
    /// Maximum segment size, 4 bytes (RFC 9293).
    pub const MSS: u8 = 2;
    /// Window scale, 3 bytes (RFC 7323).
    pub const WINDOW_SCALE: u8 = 3;
    /// SACK permitted, 2 bytes (RFC 2018).
    pub const SACK_PERMITTED: u8 = 4;
    /// SACK, 2 bytes and 8 for each of up to 4 blocks (RFC 2018).
    pub const SACK: u8 = 5;
    /// Timestamps, 10 bytes (RFC 7323).
    pub const TIMESTAMPS: u8 = 8;
}

/// The lengths of options contradict each other or the header's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What a SYN's options say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SynOptions {
    /// 0 if absent.
    pub mss: u16,
    /// [`NO_WINDOW_SCALE`] if absent.
    pub window_scale: u8,
    /// See [`sighted`].
    pub flags: u8,
    /// TSval, if there are timestamps.
    pub tsval: u32,
}

impl SynOptions {
    /// Of a SYN without options.
    pub const NONE: Self = Self { mss: 0, window_scale: NO_WINDOW_SCALE, flags: 0, tsval: 0 };
}

/// Working memory for the options of one packet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// As they arrived.
    pub old: [u8; MAX],
    /// As they leave.
    pub new: [u8; MAX],
    walk: Walk,
    found: SynOptions,
}

/// The place of a walk.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Walk {
    kind: u32,
    /// Index of the byte in its option.
    index: u32,
    /// Bytes of the option that are still to come.
    left: u32,
}

enum Step {
    End,
    Padding,
    Byte { kind: u8, index: u32 },
}

impl Scratch {
    /// Without options.
    pub const EMPTY: Self = Self {
        old: [0; MAX],
        new: [0; MAX],
        walk: Walk { kind: 0, index: 0, left: 0 },
        found: SynOptions::NONE,
    };

    /// Reads the first `length` bytes of `old` as the options of a SYN.
    #[inline(always)]
    pub fn read_syn(&mut self, length: usize) -> Result<SynOptions, Malformed> {
        self.found = SynOptions::NONE;
        self.walk.left = 0;
        for at in 0..MAX {
            match self.step(at, length)? {
                Step::End => break,
                Step::Padding => {}
                Step::Byte { kind: kind::MSS, index: 2 } if at + 2 <= MAX => {
                    self.found.mss = u16::from_be_bytes([self.old[at], self.old[at + 1]]);
                }
                Step::Byte { kind: kind::WINDOW_SCALE, index: 2 } => {
                    self.found.window_scale = self.old[at];
                }
                Step::Byte { kind: kind::SACK_PERMITTED, .. } => self.found.flags |= sighted::SACK,
                Step::Byte { kind: kind::TIMESTAMPS, index: 2 } if at + 4 <= MAX => {
                    self.found.flags |= sighted::TIMESTAMPS;
                    self.found.tsval = be32(&self.old, at);
                }
                Step::Byte { .. } => {}
            }
        }
        Ok(self.found)
    }

    /// Translates the first `length` bytes of `old` into `new`, and copies the rest. An option that was not negotiated on
    /// both legs becomes padding (NOPs).
    #[inline(always)]
    pub fn translate(
        &mut self,
        flow: &Flow,
        length: usize,
        tsecr_floor: Option<u32>,
    ) -> Result<(), Malformed> {
        self.new = self.old;
        self.found.flags = 0;
        self.walk.left = 0;
        for at in 0..MAX {
            match self.step(at, length)? {
                Step::End => break,
                Step::Padding => {}
                Step::Byte { kind: kind::TIMESTAMPS, index } if flow.has(flag::TIMESTAMPS) => {
                    if index == 2 && at + 8 <= MAX {
                        self.found.flags = sighted::TIMESTAMPS;
                        self.found.tsval = be32(&self.old, at);
                        let (tsval, tsecr) =
                            flow.timestamps(self.found.tsval, be32(&self.old, at + 4), tsecr_floor);
                        put_be32(&mut self.new, at, tsval);
                        put_be32(&mut self.new, at + 4, tsecr);
                    }
                }
                Step::Byte { kind: kind::SACK, index } if flow.has(flag::SACK) => {
                    if index >= 2 && index % 4 == 2 && at + 4 <= MAX {
                        let edge = be32(&self.old, at).wrapping_add(flow.ack_delta);
                        put_be32(&mut self.new, at, edge);
                    }
                }
                Step::Byte { .. } => self.new[at] = kind::NOP,
            }
        }
        Ok(())
    }

    /// The TSval, as it arrived, of the options [translated](Self::translate) last, if they had timestamps.
    #[inline(always)]
    pub const fn tsval(&self) -> Option<u32> {
        if self.found.flags & sighted::TIMESTAMPS != 0 { Some(self.found.tsval) } else { None }
    }

    /// What kind of byte is at `at`. An option's size is checked at its first byte.
    #[inline(always)]
    fn step(&mut self, at: usize, length: usize) -> Result<Step, Malformed> {
        if at >= length {
            return Ok(Step::End);
        }
        let Walk { kind, index, left } = forgotten(&self.walk);
        if left > 0 {
            self.walk = Walk { kind, index: index + 1, left: left - 1 };
            return Ok(Step::Byte { kind: kind as u8, index: index + 1 });
        }
        let kind = self.old[at];
        match kind {
            kind::END => return Ok(Step::End),
            kind::NOP => return Ok(Step::Padding),
            _ => {}
        }
        if at + 1 >= MAX {
            return Err(Malformed);
        }
        let size = u32::from(self.old[at + 1]);
        if size < 2 || at as u32 + size > length as u32 || !fits(kind, size) {
            return Err(Malformed);
        }
        self.walk = Walk { kind: kind.into(), index: 0, left: size - 1 };
        Ok(Step::Byte { kind, index: 0 })
    }
}

/// The walk, loaded anew from memory: neither the compiler nor the verifier may carry over what it stored there.
#[inline(always)]
fn forgotten(walk: &Walk) -> Walk {
    // SAFETY: a reference is valid, aligned and initialised.
    unsafe { core::ptr::read_volatile(walk) }
}

/// Whether an option of this kind may have this size.
#[inline(always)]
const fn fits(kind: u8, size: u32) -> bool {
    match kind {
        kind::MSS => size == 4,
        kind::WINDOW_SCALE => size == 3,
        kind::SACK_PERMITTED => size == 2,
        kind::SACK => size % 8 == 2,
        kind::TIMESTAMPS => size == 10,
        _ => true,
    }
}

#[inline(always)]
fn be32(bytes: &[u8; MAX], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn put_be32(bytes: &mut [u8; MAX], at: usize, value: u32) {
    let value = value.to_be_bytes();
    bytes[at] = value[0];
    bytes[at + 1] = value[1];
    bytes[at + 2] = value[2];
    bytes[at + 3] = value[3];
}
