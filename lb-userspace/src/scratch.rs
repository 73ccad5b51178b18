//! Buffers of a worker, borrowed between two awaits: an idle connection owns none.

use std::cell::RefCell;

/// Bytes of one read. Larger reads cost fewer calls; the buffers that one direction uses are to stay in a core's L2 cache.
pub(crate) const SIZE: usize = 128 * 1024;

/// What a read fills, and what is made of it. A direction uses `input`, and one more for each leg that speaks TLS.
pub(crate) struct Buffers {
    /// `SIZE` bytes.
    pub(crate) input: Box<[u8]>,
    /// Decrypted from `input`.
    pub(crate) plaintext: Output,
    /// Encrypted from `input` or `plaintext`.
    pub(crate) records: Output,
}

/// Bytes to write. Unlike a `Vec` it keeps its space initialised when it is cleared, so that it need not be zeroed again.
#[derive(Default)]
pub struct Output {
    space: Vec<u8>,
    /// 0 <= length <= space.len()
    length: usize,
}

impl Output {
    pub(crate) fn clear(&mut self) {
        self.length = 0;
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.space[..self.length]
    }

    /// Holds a copy of `bytes`, and nothing else.
    pub(crate) fn hold(&mut self, bytes: &[u8]) -> &[u8] {
        self.clear();
        self.extend(bytes);
        self.bytes()
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// Appends what `write` writes into the space that it is given. `write` returns how many bytes it wrote, or how many it
    /// needs; then it is called once more.
    pub(crate) fn append(&mut self, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
        let length = self.length;
        let written = match write(&mut self.space[length..]) {
            Err(required) => write(self.space(required)).unwrap_or(0),
            Ok(written) => written,
        };
        self.length += written;
    }

    /// `size` bytes of space after the present bytes.
    fn space(&mut self, size: usize) -> &mut [u8] {
        let end = self.length + size;
        if self.space.len() < end {
            self.space.resize(end, 0);
        }
        &mut self.space[self.length..end]
    }
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        input: vec![0; SIZE].into_boxed_slice(),
        plaintext: Output::default(),
        records: Output::default(),
    });
}

/// Calls `borrow` with the worker's buffers. It cannot await, so no two connections use them at once.
pub(crate) fn with<R>(borrow: impl FnOnce(&mut Buffers) -> R) -> R {
    BUFFERS.with_borrow_mut(borrow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_grows_by_what_is_asked_for_and_keeps_what_is_there() {
        let mut output = Output::default();
        output.extend(b"head");
        output.append(|out| match out.len() {
            0..6 => Err(6),
            _ => {
                out[..6].copy_from_slice(b" tail!");
                Ok(5)
            }
        });
        assert_eq!(output.bytes(), b"head tail");
        output.clear();
        assert_eq!(output.bytes(), b"");
    }
}
