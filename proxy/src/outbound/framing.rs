//! Follows the requests on an HTTP/1 connection as they arrive: lets a head on to hyper only whole and judged (see [`crate::head`]), and bodies as they come.
//! In place of a head that is refused hyper gets one of ours, whose verdict is the problem; so the answer has its place behind those before it, and
//! nothing that comes after a refused head is ever read as a request.
//!
//! A pure state machine: bytes go in; bytes for hyper come out, and one verdict for each head, in their order. Holds at most one head, and what
//! came after a request that may switch protocols until that is decided.

use std::collections::VecDeque;

use crate::head::{self, Content};
use crate::problem::{Kind, Problem};

/// What is known of a request from its head as it came.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Why it is refused, if it is.
    pub refused: Option<Box<Problem>>,
    /// Its path and query as they were sent, where they had to be masked for hyper.
    pub raw_target: Option<Box<str>>,
    /// Whether nothing after it is read before [`Framing::go_on`] or [`Framing::let_go`].
    pub may_switch: bool,
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, section 3.3).
    Http2,
}

/// Follows one connection.
#[derive(Debug)]
pub struct Framing {
    state: State,
    /// Whether the request under way may switch protocols.
    undecided: bool,
    verdicts: VecDeque<Verdict>,
    /// Bytes that hyper may have.
    ready: VecDeque<u8>,
    max_head_bytes: usize,
    /// Heads that have begun.
    heads: u64,
}

#[derive(Debug)]
enum State {
    /// At the start of the connection, where so many bytes of HTTP/2's preface have come.
    Start(usize),
    /// Between two requests; whether a CR has come.
    Idle { after_cr: bool },
    /// In a head, of which this has come; whether its method, and its first line, are over.
    Head { head: Vec<u8>, method_over: bool, line_over: bool },
    /// In a body, of which this many bytes are missing.
    Body(u64),
    /// In the line with the size of a chunk; the size so far, how many bytes of the line have come, and whether its digits are over.
    ChunkSize { size: u64, length: u16, over: bool },
    /// In a chunk, of which this many bytes are missing, its line end included.
    Chunk(u64),
    /// In the trailer section; whether nothing of a line has come, and whether a CR has.
    Trailers { empty: bool, after_cr: bool },
    /// After a request that may switch protocols; what came since.
    Undecided(Vec<u8>),
    /// Another protocol is spoken.
    LetGo,
    /// In a body that is broken: nothing more is read.
    Broken,
    /// Behind a head that was refused: nothing more is read.
    Refused,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What hyper gets in place of a head that is refused.
const IN_PLACE: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// What hyper gets in place of what is no size of a chunk. It refuses the first byte anywhere but in an extension, and the second there.
const NO_SIZE: &[u8] = b"\0\n";
/// What hyper gets in place of a line of the trailer section that does not end with CR LF: its own reader and its parser don't agree where such a line ends. It refuses this
/// anywhere in that section.
const NO_TRAILER: &[u8] = b"\r\r";
/// The most digits of the size of a chunk, and the most bytes of its line; hyper has no limit for zeros and spaces.
const MOST_DIGITS: u16 = 15;
const MOST_SIZE_LINE_BYTES: u16 = 4096;
/// What may come after a request before it is known whether it switches protocols; beyond, nothing is read.
const MOST_UNDECIDED_BYTES: usize = 64 << 10;

impl Framing {
    /// For a new connection. A head that is longer than this is refused.
    pub fn new(max_head_bytes: usize) -> Self {
        Self { state: State::Start(0), undecided: false, verdicts: VecDeque::new(), ready: VecDeque::new(), max_head_bytes, heads: 0 }
    }

    /// What has come and nothing has read, of a connection that was let go.
    pub fn left(&mut self) -> Vec<u8> {
        self.ready.drain(..).collect()
    }

    /// Which protocol is spoken, as soon as it is known; to be asked before the first request is given out.
    pub fn protocol(&self) -> Option<Protocol> {
        match self.state {
            State::Start(_) => None,
            State::LetGo => Some(Protocol::Http2),
            _ => Some(Protocol::Http1),
        }
    }

    /// Whether all of the requests that have come was given out, and the verdicts on them, and nothing of another has come.
    pub fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Idle { .. }) && self.ready.is_empty() && self.verdicts.is_empty()
    }

    /// Gives back the room that is kept for heads.
    pub fn take_little(&mut self) {
        self.ready.shrink_to_fit();
        self.verdicts.shrink_to_fit();
    }

    /// Which head is under way, if one has begun and not ended.
    pub fn in_head(&self) -> Option<u64> {
        match self.state {
            State::Head { .. } => Some(self.heads),
            State::Start(matched) if matched > 0 => Some(self.heads),
            _ => None,
        }
    }

    /// Whether it can take in more now.
    pub fn wants_more(&self) -> bool {
        match &self.state {
            State::Refused | State::Broken => false,
            State::Undecided(held) => held.len() < MOST_UNDECIDED_BYTES,
            _ => true,
        }
    }

    /// Whether a message has not come to its end, so that its sender may be sending still.
    pub fn is_within_a_message(&self) -> bool {
        !matches!(self.state, State::Start(0) | State::Idle { .. } | State::LetGo)
    }

    /// Whether the body of a request has not come to its end.
    pub fn is_in_a_body(&self) -> bool {
        matches!(self.state, State::Body(_) | State::ChunkSize { .. } | State::Chunk(_) | State::Trailers { .. } | State::Broken)
    }

    /// Whether the head under way is one of HTTP/1, and not the preface of HTTP/2.
    pub fn is_head_of_http1(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// Whether another protocol is spoken.
    pub fn is_let_go(&self) -> bool {
        matches!(self.state, State::LetGo)
    }

    /// The request under way has switched protocols: nothing is followed any more.
    pub fn let_go(&mut self) {
        if let State::Undecided(held) = std::mem::replace(&mut self.state, State::LetGo) {
            self.ready.extend(held);
        }
    }

    /// The request under way has not switched protocols, though it might have.
    pub fn go_on(&mut self) {
        self.undecided = false;
        if matches!(self.state, State::Undecided(_))
            && let State::Undecided(held) = std::mem::replace(&mut self.state, State::Idle { after_cr: false })
        {
            self.take_in(&held);
        }
    }

    /// The verdict on the next head. A request whose head was never judged is refused: hyper and this would not agree where it begins.
    pub fn take_verdict(&mut self) -> Verdict {
        self.verdicts.pop_front().unwrap_or_else(|| Verdict {
            refused: Some(Box::new(Problem::new(Kind::BadRequest, "where this request begins is not clear; use another connection").closing())),
            ..Verdict::default()
        })
    }

    /// Refuses the head that is under way, and reads nothing more.
    pub fn refuse(&mut self, problem: Problem) {
        self.verdicts.push_back(Verdict { refused: Some(Box::new(problem.closing())), ..Verdict::default() });
        self.ready.extend(IN_PLACE);
        self.state = State::Refused;
    }

    /// Takes in what arrived. Says whether hyper may have it as it is; if not, what it may have is ready.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        if self.ready.is_empty() {
            match &mut self.state {
                State::LetGo => return true,
                State::Body(left) | State::Chunk(left) if *left > bytes.len() as u64 => {
                    *left -= bytes.len() as u64;
                    return true;
                }
                _ => {}
            }
        }
        self.take_in(bytes);
        false
    }

    /// Gives out what is ready, at most `most` bytes of it, in one or several pieces.
    pub fn give(&mut self, most: usize, mut to: impl FnMut(&[u8])) -> usize {
        let (first, second) = self.ready.as_slices();
        let first = &first[..first.len().min(most)];
        let second = &second[..second.len().min(most - first.len())];
        let given = first.len() + second.len();
        to(first);
        to(second);
        self.ready.drain(..given);
        if self.ready.is_empty() {
            // An idle connection holds no memory for heads.
            self.ready = VecDeque::new();
        }
        given
    }

    fn take_in(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = self.step(bytes);
            bytes = &bytes[used..];
        }
    }

    /// Goes on by one step; says how many bytes it took. It takes at least one, or goes to a state that does.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::LetGo => {
                self.ready.extend(bytes);
                bytes.len()
            }
            State::Refused | State::Broken => bytes.len(),
            State::Undecided(held) => {
                held.extend_from_slice(bytes);
                bytes.len()
            }
            State::Start(matched) => {
                if bytes[0] == PREFACE[*matched] {
                    *matched += 1;
                    if *matched == PREFACE.len() {
                        self.ready.extend(PREFACE);
                        self.state = State::LetGo;
                    }
                    return 1;
                }
                let begun = &PREFACE[..*matched];
                self.state = State::Idle { after_cr: false };
                self.take_in(begun);
                0
            }
            State::Idle { after_cr } => match (bytes[0], *after_cr) {
                // Empty lines before a request are ignored (RFC 9112, section 2.2).
                (b'\r', false) => {
                    *after_cr = true;
                    1
                }
                (b'\n', _) => {
                    *after_cr = false;
                    1
                }
                (_, after_cr) => {
                    let head = if after_cr { b"\r".to_vec() } else { Vec::new() };
                    self.heads += 1;
                    self.state = State::Head { head, method_over: false, line_over: false };
                    0
                }
            },
            State::Head { .. } => self.step_in_head(bytes),
            State::Body(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= used as u64;
                self.ready.extend(&bytes[..used]);
                if *left == 0 {
                    self.end_message();
                }
                used
            }
            State::ChunkSize { size, length, over } => {
                self.ready.push_back(bytes[0]);
                let digit = if *over { None } else { char::from(bytes[0]).to_digit(16) };
                match (bytes[0], digit) {
                    (_, Some(digit)) if *length < MOST_DIGITS => *size = *size << 4 | u64::from(digit),
                    (b'\n', _) if *length > 0 => {
                        self.state = if *size == 0 { State::Trailers { empty: true, after_cr: false } } else { State::Chunk(*size + 2) };
                        return 1;
                    }
                    (_, None) if *length > 0 && *length < MOST_SIZE_LINE_BYTES => *over = true,
                    _ => {
                        self.ready.pop_back();
                        self.ready.extend(NO_SIZE);
                        self.state = State::Broken;
                        return bytes.len();
                    }
                }
                *length += 1;
                1
            }
            State::Chunk(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= used as u64;
                self.ready.extend(&bytes[..used]);
                if *left == 0 {
                    self.state = State::ChunkSize { size: 0, length: 0, over: false };
                }
                used
            }
            State::Trailers { empty, after_cr } => {
                self.ready.push_back(bytes[0]);
                match (bytes[0], *after_cr) {
                    (b'\n', true) if *empty => self.end_message(),
                    (b'\n', true) => (*empty, *after_cr) = (true, false),
                    (b'\r', false) => *after_cr = true,
                    (b'\n', false) | (_, true) => {
                        self.ready.pop_back();
                        self.ready.extend(NO_TRAILER);
                        self.state = State::Broken;
                        return bytes.len();
                    }
                    (_, false) => *empty = false,
                }
                1
            }
        }
    }

    fn step_in_head(&mut self, bytes: &[u8]) -> usize {
        let State::Head { head, method_over, line_over } = &mut self.state else { return 0 };
        let seen = head.len();
        let room = (self.max_head_bytes + 1).saturating_sub(seen);
        let took = bytes.len().min(room);
        head.extend_from_slice(&bytes[..took]);
        // What can be no head is refused at once, not when its sender has had its time.
        let mut fault = None;
        if !*method_over {
            let from = seen.saturating_sub(1);
            *method_over = head[from..].contains(&b' ') || head[from..].contains(&b'\n');
            if !*method_over {
                fault = head::judge_method(&head[from..]).err();
            }
        }
        if !*line_over && let Some(end) = head[seen..].iter().position(|b| *b == b'\n') {
            *line_over = true;
            fault = head::judge_line(&head[..=seen + end]).err();
        }
        if let Some(problem) = fault {
            self.refuse(problem);
            return took.max(1);
        }
        let length = end_of_head(head, seen.saturating_sub(3));
        if length.unwrap_or(head.len()) > self.max_head_bytes {
            let most = self.max_head_bytes;
            self.refuse(Problem::new(Kind::HeadTooLarge, format!("the head has more than {most} bytes; send less, or set `max-head` higher")));
            return took.max(1);
        }
        let Some(length) = length else { return took };
        head.truncate(length);
        match head::judge(head) {
            Err(problem) => self.refuse(problem),
            Ok(judged) => {
                self.ready.extend(&*head);
                self.undecided = judged.may_switch;
                self.verdicts.push_back(Verdict { refused: None, raw_target: judged.raw_target, may_switch: judged.may_switch });
                match judged.content {
                    Content::None => self.end_message(),
                    Content::Sized(left) => self.state = State::Body(left),
                    Content::Chunked => self.state = State::ChunkSize { size: 0, length: 0, over: false },
                }
            }
        }
        length - seen
    }

    fn end_message(&mut self) {
        self.state = if self.undecided { State::Undecided(Vec::new()) } else { State::Idle { after_cr: false } };
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The words of the problems, or `clear`; and what hyper gets.
    fn fed(bytes: &[u8], step: usize) -> (Vec<&'static str>, Vec<u8>) {
        let mut framing = Framing::new(1000);
        let mut given = Vec::new();
        for chunk in bytes.chunks(step.max(1)) {
            if framing.feed(chunk) {
                given.extend_from_slice(chunk);
            }
            framing.give(usize::MAX, |bytes| given.extend_from_slice(bytes));
        }
        let words = framing.verdicts.iter().map(|v| v.refused.as_ref().map_or("clear", |p| p.kind().word())).collect();
        (words, given)
    }

    const CLEAR: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn requests_pass_as_they_are_however_they_arrive() {
        let sized = b"POST / HTTP/1.1\r\ncontent-length:5\r\n\r\n12\r\n\r".to_vec();
        let chunked = b"POST / HTTP/1.1\nTransfer-Encoding: chunked\n\n3;x=\"1\"\r\na\r\n\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n".to_vec();
        let all = [CLEAR, &sized, &chunked, CLEAR].concat();
        for step in [1, 2, 3, 7, 1000] {
            assert_eq!(fed(&all, step), (vec!["clear"; 4], all.clone()), "{step}");
        }
        let empty_lines = [b"\r\n\n\r\n", CLEAR, b"\r\n", CLEAR].concat();
        assert_eq!(fed(&empty_lines, 1), (vec!["clear"; 2], [CLEAR, CLEAR].concat()));
    }

    #[test]
    fn nothing_behind_a_refused_head_is_read_as_a_request() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1000));
        for (bad, word) in [
            (&b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"[..], "bad-request"),
            (b"GET /\r\n", "bad-request"),
            (b"\x16\x03\x01", "bad-request"),
            (b"\rGET / HTTP/1.1\r\n\r\n", "bad-request"),
            (long.as_bytes(), "head-too-large"),
        ] {
            for step in [1, 5, 5000] {
                let (words, given) = fed(&[CLEAR, bad, CLEAR].concat(), step);
                assert_eq!((words, given), (vec!["clear", word], [CLEAR, IN_PLACE].concat()), "{bad:?} {step}");
            }
        }
    }

    #[test]
    fn a_head_may_have_as_many_bytes_as_it_may() {
        let head = |bytes: usize| format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(bytes - 23)).into_bytes();
        for step in [1, 999, 5000] {
            assert_eq!(fed(&head(1000), step).0, ["clear"]);
            assert_eq!(fed(&head(1001), step).0, ["head-too-large"]);
        }
    }

    #[test]
    fn nothing_in_or_behind_a_broken_body_is_read() {
        let head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
        let (zeros, spaces) = (b"0".repeat(16), [b"3;".to_vec(), b" ".repeat(5000)].concat());
        for (broken, reached) in [(&zeros[..], 15), (&spaces[..], 4096), (b"x\r\n", 0), (b"\r\n", 0), (b"-1\r\n", 0)] {
            for step in [1, 7, 10_000] {
                let (words, given) = fed(&[head, broken, CLEAR].concat(), step);
                assert_eq!((words, given), (vec!["clear"], [head, &broken[..reached], NO_SIZE].concat()), "{step}");
            }
        }
        for (broken, reached) in [(&b"0\r\nx: 1\n\r\n"[..], 7), (b"0\r\n\n", 3), (b"0\r\nx: 1\rx\r\n\r\n", 8), (b"0\r\n\r\r\n", 4)] {
            for step in [1, 7, 10_000] {
                let (words, given) = fed(&[head, broken, CLEAR].concat(), step);
                assert_eq!((words, given), (vec!["clear"], [head, &broken[..reached], NO_TRAILER].concat()), "{broken:?} {step}");
            }
        }
    }

    #[test]
    fn http2_is_known_by_its_preface_and_not_followed() {
        let http2 = [PREFACE, b"\0\0\0POST / HTTP/1.1\r\nTE: x\r\n\r\n"].concat();
        for step in [1, 5, 100] {
            assert_eq!(fed(&http2, step), (vec![], http2.clone()));
            assert_eq!(fed(&PREFACE[..20], step), (vec![], vec![]));
            assert_eq!(fed(b"PRI * HTTP/2.0\r\n\r\nxx\r\n\r\n", step).0, ["bad-request"]);
            assert_eq!(fed(&[CLEAR, PREFACE].concat(), step).0, ["clear", "bad-request"]);
            assert_eq!(fed(b"PRINT / HTTP/1.1\r\n\r\n", step).0, ["clear"]);
        }
    }

    #[test]
    fn what_follows_a_switch_is_held_until_it_is_decided() {
        let connect = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
        for step in [1, 3, 1000] {
            let start = || {
                let mut framing = Framing::new(1000);
                [&connect[..], CLEAR].concat().chunks(step).for_each(|c| assert!(!framing.feed(c)));
                let mut given = Vec::new();
                framing.give(usize::MAX, |b| given.extend_from_slice(b));
                assert_eq!(given, connect, "the tunnel's own bytes are not judged");
                assert!(framing.take_verdict().may_switch);
                framing
            };
            let mut switched = start();
            switched.let_go();
            let mut given = Vec::new();
            switched.give(usize::MAX, |b| given.extend_from_slice(b));
            assert_eq!((given.as_slice(), switched.feed(b"\0\0")), (CLEAR, true));

            let mut declined = start();
            declined.go_on();
            assert!(declined.take_verdict().refused.is_none() && declined.give(usize::MAX, |_| {}) == CLEAR.len());
        }
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut framing = Framing::new(1000);
        framing.feed(b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n");
        while framing.wants_more() {
            framing.feed(&[b'x'; 1000]);
        }
        framing.refuse(Problem::new(Kind::BadRequest, ""));
        assert!(!framing.wants_more());
    }

    #[test]
    fn a_request_without_a_verdict_is_refused() {
        assert!(Framing::new(1000).take_verdict().refused.is_some());
    }

    #[test]
    fn each_head_is_told_from_the_one_before() {
        let mut framing = Framing::new(1000);
        framing.feed(b"GET");
        let first = framing.in_head().unwrap();
        framing.feed(b" / HTTP/1.1\r\n\r\nGET");
        assert!(framing.in_head().unwrap() > first);
    }

    const PARTS: &[&[u8]] = &[
        b"POST / HTTP/1.1\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Upgrade: x\r\n",
        b"\r\n",
        b"\n",
        b"3\r\nabc\r\n",
        b"0\r\n",
        b"ffffffffffffffff\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"SM\r\n\r\n",
        b"\0\xff",
    ];

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_depend_on_how_they_arrive(
            parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..40),
            step in 1usize..50,
        ) {
            let bytes = parts.concat();
            prop_assert_eq!(fed(&bytes, step), fed(&bytes, 1));
        }
    }
}
