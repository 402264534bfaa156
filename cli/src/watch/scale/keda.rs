//! KEDA's external scaler (`externalscaler.proto` of KEDA 2): gRPC, which is a message with five bytes before it over HTTP/2, and a status in the trailers.
//!
//! A ScaledObject names the component, and how many calls one replica is to have:
//!
//! ```yaml
//! triggers:
//!   - type: external-push
//!     metadata: {scalerAddress: "bluebox-watch.bluebox:4146", component: cart, calls: "64"}
//! ```

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use bluebox_core::clock::wall_clock;
use bluebox_observe::listener;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::net::TcpListener;

use super::{Figure, Unknown, figure};
use crate::watch::Watched;

/// What a path begins with: package and service.
const SERVICE: &str = "/externalscaler.ExternalScaler/";
/// The largest request: names, and the metadata of a trigger.
const MAX_BYTES: usize = 64 << 10;
/// Requests of one connection that are answered at once; streams are among them, and KEDA has one connection to an address for all ScaledObjects.
const MAX_STREAMS: u32 = 1000;
/// Connections at once.
const MAX_CONNECTIONS: usize = 16;
/// After so long without a word it is asked whether the other side is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Calls that one replica is to have if the trigger doesn't say it: the concurrency that a box has by default.
const CALLS: u64 = 64;
const BACKLOG: &str = "backlog";
const OLDEST: &str = "oldest";

#[derive(Clone, PartialEq, Message)]
struct ScaledObjectRef {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(map = "string, string", tag = "3")]
    scaler_metadata: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct IsActiveResponse {
    #[prost(bool, tag = "1")]
    result: bool,
}

#[derive(Clone, PartialEq, Message)]
struct GetMetricSpecResponse {
    #[prost(message, repeated, tag = "1")]
    metric_specs: Vec<MetricSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricSpec {
    #[prost(string, tag = "1")]
    metric_name: String,
    /// What KEDA before 2.16 reads.
    #[prost(int64, tag = "2")]
    target_size: i64,
    #[prost(double, tag = "3")]
    target_size_float: f64,
}

#[derive(Clone, PartialEq, Message)]
struct GetMetricsRequest {
    #[prost(message, optional, tag = "1")]
    scaled_object_ref: Option<ScaledObjectRef>,
    #[prost(string, tag = "2")]
    metric_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetMetricsResponse {
    #[prost(message, repeated, tag = "1")]
    metric_values: Vec<MetricValue>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricValue {
    #[prost(string, tag = "1")]
    metric_name: String,
    /// What KEDA before 2.16 reads.
    #[prost(int64, tag = "2")]
    metric_value: i64,
    #[prost(double, tag = "3")]
    metric_value_float: f64,
}

/// A status of gRPC, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Code {
    Ok = 0,
    InvalidArgument = 3,
    NotFound = 5,
    Unimplemented = 12,
    Unavailable = 14,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused(Code, String);

impl From<Unknown> for Refused {
    fn from(unknown: Unknown) -> Self {
        let code = if matches!(unknown, Unknown::NoComponent(_)) { Code::NotFound } else { Code::Unavailable };
        Self(code, unknown.to_string())
    }
}

/// What a trigger says.
#[derive(Debug, Clone, PartialEq)]
struct Trigger {
    component: String,
    /// Calls that one replica is to have.
    calls: u64,
    /// More calls than that make it active.
    activation_calls: u64,
    /// Each time so many seconds that the oldest call is old ask for a replica; none: its age asks for nothing.
    oldest_seconds: Option<f64>,
}

impl Trigger {
    fn of(object: &ScaledObjectRef) -> Result<Self, Refused> {
        let metadata = &object.scaler_metadata;
        let wrong =
            |key: &str, why: &str| Refused(Code::InvalidArgument, format!("metadata of the trigger of {}/{}: {key}: {why}", object.namespace, object.name));
        let count = |key: &str, usual: u64| {
            let text = metadata.get(key);
            text.map_or(Ok(usual), |text| text.parse().map_err(|_| wrong(key, &format!("{text:?} is no whole number, such as \"64\""))))
        };
        let component = metadata.get("component").filter(|name| !name.is_empty()).ok_or_else(|| wrong("component", "is missing: the name that is called"))?;
        let calls = count("calls", CALLS)?;
        if calls == 0 {
            return Err(wrong("calls", "0: at least 1 call for each replica"));
        }
        let oldest = metadata.get("oldestSeconds").map(|text| {
            let seconds: Option<f64> = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
            seconds.ok_or_else(|| wrong("oldestSeconds", &format!("{text:?} is no number of seconds above 0, such as \"30\"")))
        });
        Ok(Self { component: component.clone(), calls, activation_calls: count("activationCalls", 0)?, oldest_seconds: oldest.transpose()? })
    }

    fn is_active(&self, figure: Figure) -> bool {
        figure.backlog > self.activation_calls
    }

    fn specs(&self) -> Vec<MetricSpec> {
        let spec = |name: &str, target: f64| MetricSpec { metric_name: name.to_owned(), target_size: whole(target).max(1), target_size_float: target };
        let backlog = spec(BACKLOG, self.calls as f64);
        std::iter::once(backlog).chain(self.oldest_seconds.map(|seconds| spec(OLDEST, seconds))).collect()
    }

    fn value(&self, name: &str, figure: Figure) -> Result<MetricValue, Refused> {
        let value = match name {
            BACKLOG | "" => figure.backlog as f64,
            OLDEST => figure.oldest.as_secs_f64(),
            _ => return Err(Refused(Code::NotFound, format!("metric {name:?}: there are {BACKLOG} and {OLDEST}"))),
        };
        Ok(MetricValue { metric_name: name.to_owned(), metric_value: whole(value), metric_value_float: value })
    }
}

/// The next whole number above; what is too large for one is the largest.
fn whole(value: f64) -> i64 {
    value.ceil() as i64
}

/// Answers until it is dropped.
pub(crate) async fn serve(listener: TcpListener, watched: Watched) {
    listener::accept(listener, MAX_CONNECTIONS, move |stream, _, busy| {
        busy.set(true);
        let watched = watched.clone();
        async move {
            let service = service_fn(move |request| {
                let watched = watched.clone();
                async move { Ok::<_, Infallible>(answer(request, &watched).await) }
            });
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).max_concurrent_streams(MAX_STREAMS);
            // A connection that broke is its client's affair.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await;
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, watched: &Watched) -> Response<Body> {
    match called(request, watched).await {
        Ok(body) => {
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(refused) => {
            // Trailers alone, which stand in the head then.
            let mut response = Response::new(Empty::new().boxed_unsync());
            *response.headers_mut() = trailers(&refused);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
    }
}

async fn called(request: Request<Incoming>, watched: &Watched) -> Result<Body, Refused> {
    let is_grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if request.method() != Method::POST || !is_grpc {
        return Err(Refused(Code::Unimplemented, "this is KEDA's external scaler, by gRPC".to_owned()));
    }
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(|error| Refused(Code::InvalidArgument, format!("the request can't be read: {error}")))?.to_bytes();
    match path.strip_prefix(SERVICE).unwrap_or_default() {
        "IsActive" => {
            let trigger = Trigger::of(&message(&body)?)?;
            let figure = figure(&watched.status.borrow(), &trigger.component, wall_clock())?;
            Ok(once(&IsActiveResponse { result: trigger.is_active(figure) }))
        }
        "StreamIsActive" => {
            let trigger = Trigger::of(&message(&body)?)?;
            // What is wrong with it is said at once.
            figure(&watched.status.borrow(), &trigger.component, wall_clock())?;
            Ok(StreamBody::new(active(watched.clone(), trigger)).boxed_unsync())
        }
        "GetMetricSpec" => Ok(once(&GetMetricSpecResponse { metric_specs: Trigger::of(&message(&body)?)?.specs() })),
        "GetMetrics" => {
            let asked: GetMetricsRequest = message(&body)?;
            let trigger = Trigger::of(&asked.scaled_object_ref.unwrap_or_default())?;
            let figure = figure(&watched.status.borrow(), &trigger.component, wall_clock())?;
            Ok(once(&GetMetricsResponse { metric_values: vec![trigger.value(&asked.metric_name, figure)?] }))
        }
        _ => Err(Refused(
            Code::Unimplemented,
            format!("{path}: there are IsActive, StreamIsActive, GetMetricSpec and GetMetrics of externalscaler.ExternalScaler"),
        )),
    }
}

/// Whether it is active, and again whenever that changes. A client that has gone ends it.
fn active(watched: Watched, trigger: Trigger) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
    struct At {
        watched: Watched,
        trigger: Trigger,
        told: Option<bool>,
    }
    let at = Some(At { watched, trigger, told: None });
    stream::unfold(at, |at| async move {
        let mut at = at?;
        loop {
            // Marked as seen before it is looked at: what comes later is a change.
            let figure = figure(&at.watched.status.borrow_and_update(), &at.trigger.component, wall_clock());
            match figure.map(|figure| at.trigger.is_active(figure)) {
                Ok(active) if at.told != Some(active) => {
                    at.told = Some(active);
                    return Some((Ok(Frame::data(framed(&IsActiveResponse { result: active }))), Some(at)));
                }
                // What is not known changes nothing.
                Ok(_) | Err(_) => {}
            }
            if at.watched.status.changed().await.is_err() {
                let refused = Refused(Code::Unavailable, "nobody looks any more".to_owned());
                return Some((Ok(Frame::trailers(trailers(&refused))), None));
            }
        }
    })
}

fn message<M: Message + Default>(body: &[u8]) -> Result<M, Refused> {
    let malformed = |why: String| Refused(Code::InvalidArgument, why);
    let (head, rest) = body.split_at_checked(5).ok_or_else(|| malformed("the request has no message".to_owned()))?;
    if head[0] != 0 {
        return Err(Refused(Code::Unimplemented, "compressed messages are not taken".to_owned()));
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if rest.len() != length {
        return Err(malformed(format!("the message should have {length} bytes and has {}", rest.len())));
    }
    M::decode(rest).map_err(|error| malformed(error.to_string()))
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

fn once(message: &impl Message) -> Body {
    let frames = [Ok(Frame::data(framed(message))), Ok(Frame::trailers(trailers(&Refused(Code::Ok, String::new()))))];
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn trailers(Refused(code, why): &Refused) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(*code as u8)));
    // Percent-encoded, as the protocol wants it.
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'%';
    let why: String = why.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect();
    if let Some(why) = HeaderValue::from_str(&why).ok().filter(|why| !why.is_empty()) {
        trailers.insert("grpc-message", why);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
        let scaler_metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ScaledObjectRef { name: "cart".to_owned(), namespace: "shop".to_owned(), scaler_metadata }
    }

    #[test]
    fn a_trigger_says_what_is_wrong_with_it() {
        let trigger = Trigger::of(&object(&[("component", "cart"), ("scalerAddress", "somewhere:1")])).unwrap();
        assert_eq!(trigger, Trigger { component: "cart".to_owned(), calls: 64, activation_calls: 0, oldest_seconds: None });
        for (metadata, says) in [
            (&[("calls", "5")][..], "component: is missing"),
            (&[("component", "cart"), ("calls", "many")], "calls: \"many\" is no whole number"),
            (&[("component", "cart"), ("calls", "0")], "at least 1"),
            (&[("component", "cart"), ("oldestSeconds", "-1")], "above 0"),
        ] {
            let Refused(code, why) = Trigger::of(&object(metadata)).unwrap_err();
            assert!(code == Code::InvalidArgument && why.contains(says) && why.contains("shop/cart"), "{why}");
        }
    }

    #[test]
    fn what_is_asked_for_is_told() {
        let trigger = Trigger::of(&object(&[("component", "cart"), ("calls", "10"), ("activationCalls", "2"), ("oldestSeconds", "0.5")])).unwrap();
        let figure = |backlog| Figure { backlog, oldest: Duration::from_millis(1500) };
        assert!(!trigger.is_active(figure(2)) && trigger.is_active(figure(3)));
        let specs = trigger.specs();
        assert_eq!((specs[0].metric_name.as_str(), specs[0].target_size, specs[0].target_size_float), ("backlog", 10, 10.0));
        assert_eq!((specs[1].metric_name.as_str(), specs[1].target_size, specs[1].target_size_float), ("oldest", 1, 0.5));
        assert_eq!(trigger.value("backlog", figure(7)).unwrap().metric_value, 7);
        let oldest = trigger.value("oldest", figure(7)).unwrap();
        assert_eq!((oldest.metric_value, oldest.metric_value_float), (2, 1.5));
        assert!(trigger.value("lag", figure(7)).is_err());
    }

    #[test]
    fn messages_have_five_bytes_before_them() {
        let it = object(&[("component", "cart")]);
        let bytes = framed(&it);
        assert_eq!(message::<ScaledObjectRef>(&bytes), Ok(it));
        for (bytes, code) in [(&bytes[..4], Code::InvalidArgument), (&bytes[..bytes.len() - 1], Code::InvalidArgument), (&[1, 0, 0, 0, 0], Code::Unimplemented)]
        {
            assert_eq!(message::<ScaledObjectRef>(bytes).unwrap_err().0, code);
        }
        let trailers = trailers(&Refused(Code::NotFound, "100 % of \"é\"".to_owned()));
        assert_eq!((&trailers["grpc-status"], trailers["grpc-message"].to_str().unwrap()), (&HeaderValue::from_static("5"), "100 %25 of \"%C3%A9\""));
    }
}
