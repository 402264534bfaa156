//! Watches the heads of HTTP/1.1 requests as they arrive, for what hyper does not show to who uses it: a request with both `Content-Length` and
//! `Transfer-Encoding`. hyper drops the first of the two, which RFC 9112, section 6.3, allows but calls an attempt at request smuggling, to be handled as an
//! error.
//!
//! A pure state machine: bytes go in, one verdict for each head comes out, in their order. What it can't follow it leaves to hyper, which refuses it.

use std::collections::VecDeque;

/// What is to be thought of a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its framing is clear.
    Clear,
    /// It has both `Content-Length` and `Transfer-Encoding`.
    TwoFramings,
}

/// Follows one connection.
#[derive(Debug)]
pub struct Framing {
    state: State,
    verdicts: VecDeque<Verdict>,
    max_head_bytes: usize,
}

#[derive(Debug)]
enum State {
    /// Between two requests.
    Idle,
    /// In a head, of which this has been seen.
    Head(Vec<u8>),
    /// In a body, of which this many bytes are missing.
    Body(u64),
    /// In the line with the size of a chunk; the size so far, and whether its digits are over.
    ChunkSize { size: u64, digits: u8, over: bool },
    /// In a chunk, of which this many bytes are missing, its line end included.
    Chunk(u64),
    /// In the trailer section; the length of the line so far, without its end.
    Trailers(u64),
    /// No longer followed: another protocol, or something that hyper refuses.
    Lost,
}

/// Heads that may wait for their verdict to be taken; more are not sent by anybody who speaks HTTP on this connection.
const MOST_VERDICTS: usize = 4096;

impl Framing {
    /// For a new connection. A head that is longer than this is not followed.
    pub fn new(max_head_bytes: usize) -> Self {
        Self { state: State::Idle, verdicts: VecDeque::new(), max_head_bytes }
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Follows it no more: it speaks another protocol now.
    pub fn let_go(&mut self) {
        self.state = State::Lost;
    }

    /// The verdict on the next head; [`Verdict::Clear`] when it isn't followed any more.
    pub fn take_verdict(&mut self) -> Verdict {
        self.verdicts.pop_front().unwrap_or(Verdict::Clear)
    }

    /// Takes in what arrived.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = self.step(bytes);
            bytes = &bytes[used.min(bytes.len())..];
        }
    }

    /// Goes on by one step; says how many bytes it took, at least one.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::Lost => bytes.len(),
            State::Idle => {
                // Empty lines before a request are ignored (RFC 9112, section 2.2).
                if !matches!(bytes[0], b'\r' | b'\n') {
                    self.state = State::Head(Vec::new());
                    return self.step(bytes);
                }
                1
            }
            State::Head(head) => {
                let seen = head.len();
                let room = (self.max_head_bytes + 1).saturating_sub(seen);
                let end = bytes.len().min(room);
                head.extend_from_slice(&bytes[..end]);
                match end_of_head(head, seen.saturating_sub(3)) {
                    Some(length) => {
                        let used = length - seen;
                        head.truncate(length);
                        let (verdict, next) = judge(head);
                        self.state = next;
                        if self.verdicts.len() < MOST_VERDICTS {
                            self.verdicts.push_back(verdict);
                        } else {
                            self.state = State::Lost;
                        }
                        used
                    }
                    None => {
                        if head.len() > self.max_head_bytes {
                            self.state = State::Lost;
                        }
                        end.max(1)
                    }
                }
            }
            State::Body(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= used as u64;
                if *left == 0 {
                    self.state = State::Idle;
                }
                used
            }
            State::ChunkSize { size, digits, over } => {
                match bytes[0] {
                    b'\n' if *digits > 0 => self.state = if *size == 0 { State::Trailers(0) } else { State::Chunk(*size + 2) },
                    b'\n' => self.state = State::Lost,
                    b if !*over && b.is_ascii_hexdigit() && *digits < 15 => {
                        let digit = char::from(b).to_digit(16).unwrap_or(0);
                        *size = *size << 4 | u64::from(digit);
                        *digits += 1;
                    }
                    b if b.is_ascii_hexdigit() && !*over => self.state = State::Lost,
                    _ => *over = true,
                }
                1
            }
            State::Chunk(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= used as u64;
                if *left == 0 {
                    self.state = State::ChunkSize { size: 0, digits: 0, over: false };
                }
                used
            }
            State::Trailers(length) => {
                match bytes[0] {
                    b'\n' if *length == 0 => self.state = State::Idle,
                    b'\n' => *length = 0,
                    b'\r' => {}
                    _ => *length += 1,
                }
                1
            }
        }
    }
}

/// The length of the head up to and with its empty line, if that is there; looked for from `from` on. A line may end with LF alone, as hyper has it.
fn end_of_head(head: &[u8], from: usize) -> Option<usize> {
    (from..head.len()).find_map(|at| match &head[at..] {
        [b'\n', b'\n', ..] => Some(at + 2),
        [b'\n', b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

fn judge(head: &[u8]) -> (Verdict, State) {
    if head.starts_with(b"PRI * HTTP/2") {
        return (Verdict::Clear, State::Lost);
    }
    let (mut length, mut transfer_encoding) = (None, false);
    for line in head.split(|b| *b == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            // hyper refuses what is no number, and two that differ.
            length = Some(std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok()));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            transfer_encoding = true;
        }
    }
    match (length, transfer_encoding) {
        (Some(_), true) => (Verdict::TwoFramings, State::Lost),
        (None, true) => (Verdict::Clear, State::ChunkSize { size: 0, digits: 0, over: false }),
        (Some(None), false) => (Verdict::Clear, State::Lost),
        (Some(Some(left)), false) if left > 0 => (Verdict::Clear, State::Body(left)),
        _ => (Verdict::Clear, State::Idle),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdicts(bytes: &[u8], step: usize) -> Vec<Verdict> {
        let mut framing = Framing::new(1000);
        bytes.chunks(step.max(1)).for_each(|c| framing.feed(c));
        framing.verdicts.into()
    }

    #[test]
    fn both_framings_are_seen_wherever_they_come() {
        use Verdict::{Clear, TwoFramings};
        let clear = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
        let sized = b"POST / HTTP/1.1\r\ncontent-length:5\r\n\r\n12\r\n\r".to_vec();
        let chunked = b"POST / HTTP/1.1\nTransfer-Encoding: chunked\n\n3;x=\"1\"\r\na\r\n\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n".to_vec();
        let both = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n".to_vec();
        let neither_order = b"POST / HTTP/1.1\r\nCONTENT-LENGTH : 3\r\nTRANSFER-ENCODING: identity\r\n\r\n".to_vec();
        for step in [1, 2, 3, 7, 1000] {
            assert_eq!(verdicts(&[&clear[..], &sized, &chunked, &clear, &both].concat(), step), [Clear, Clear, Clear, Clear, TwoFramings], "{step}");
            assert_eq!(verdicts(&[&chunked[..], b"\r\n", &neither_order].concat(), step), [Clear, TwoFramings], "{step}");
        }
    }

    #[test]
    fn http2_and_garbage_are_left_alone() {
        assert_eq!(verdicts(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nPOST / HTTP/1.1\r\nTE: x\r\n\r\n", 5), [Verdict::Clear]);
        assert_eq!(verdicts(&[b'x'; 5000], 100), []);
    }

    const PARTS: &[&[u8]] = &[
        b"POST / HTTP/1.1\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n",
        b"\n",
        b"3\r\nabc\r\n",
        b"0\r\n",
        b"ffffffffffffffff\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"\0\xff",
    ];

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_depend_on_how_they_arrive(
            parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..40),
            step in 1usize..50,
        ) {
            let bytes = parts.concat();
            prop_assert_eq!(verdicts(&bytes, step), verdicts(&bytes, 1));
        }
    }
}
