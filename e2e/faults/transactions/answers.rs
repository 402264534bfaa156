//! What participants answer: a function of what they are asked, so that it is the same when it is asked again, and the judge knows it.

use bluebox_e2e::app::{Asked, Content, content};
use http::{Response, StatusCode};

/// Below 100, the same in every run (FNV-1a).
fn luck(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)) % 100
}

/// Whether the step of a saga whose action is at this path has no place any more: a business no.
pub(crate) fn says_no(path: &str) -> bool {
    luck(path) < 8
}

pub(crate) fn answer(asked: &Asked) -> Response<Content> {
    let says = |status: u16, body: &'static str| {
        let mut response = Response::new(content(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        response
    };
    let path = asked.target.as_str();
    let key = asked.header("idempotency-key");
    let n: u32 = key.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let luck = luck(&format!("{}{path}", asked.header("long-running-action")));
    match path.rsplit('/').next().unwrap_or_default() {
        // A tenth takes its time, and a tenth makes no sense at first.
        "complete" | "compensate" if luck < 10 && n == 0 => says(202, ""),
        "complete" | "compensate" if luck < 20 && n < 2 => says(500, "not yet"),
        // A step that has no place any more, and one that is still going.
        "do" if says_no(path) => says(409, "no"),
        "do" if luck < 14 && n < 2 => says(425, ""),
        "do" if luck < 20 && n < 1 => says(500, ""),
        _ => says(200, ""),
    }
}
