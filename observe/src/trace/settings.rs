//! What the standard environment says of traces (OpenTelemetry: *Environment Variable Specification*, *OTLP Exporter*).

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::uri::{Scheme, Uri};

use super::sampler::{Sampler, Samples};

/// Where traces go to, and which.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where each request with spans is sent to.
    pub endpoint: Uri,
    /// Fields that each has: they may be secret.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long one may take, all its tries together.
    pub timeout: Duration,
    /// Which traces that begin here are kept, and which that come from elsewhere.
    pub sampler: Sampler,
    /// What the spans are said to come from; `None`: the part's own name.
    pub service: Option<String>,
    /// More that is said of where they come from.
    pub resource: Vec<(String, String)>,
    /// How long a span waits for others before all are sent.
    pub delay: Duration,
    /// Spans that may wait to be sent; beyond, they are dropped and counted.
    pub queue: usize,
    /// The most spans of one request.
    pub batch: usize,
}

/// What the environment says that can't be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value}: {rule}")]
pub struct Unusable {
    variable: &'static str,
    value: String,
    rule: &'static str,
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Where a collector listens that nobody has told otherwise.
const USUAL: &str = "http://localhost:4318";

impl Settings {
    /// From the environment, which `variable` looks into. `None`: there are to be no traces, as long as it says neither where they go nor that they go.
    ///
    /// # Errors
    /// When it says something that can't be done. Then there should be no traces, and somebody should be told.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Unusable> {
        // An empty one counts as one that is not there.
        let variable = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let own_or = |own: &'static str, all: &'static str| variable(own).map(|value| (own, value)).or_else(|| variable(all).map(|value| (all, value)));
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        match variable("OTEL_TRACES_EXPORTER").as_deref() {
            None if variable(ENDPOINT).is_none() && variable(TRACES_ENDPOINT).is_none() => return Ok(None),
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => return Err(unusable("OTEL_TRACES_EXPORTER", other, "otlp or none")),
        }
        match own_or("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") {
            None => {}
            Some((_, protocol)) if protocol == "http/protobuf" => {}
            Some((name, other)) => {
                return Err(unusable(name, &other, "http/protobuf is what this program speaks; a collector listens for it at its port 4318"));
            }
        }
        match own_or("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION") {
            None => {}
            Some((_, compression)) if compression == "none" => {}
            Some((name, other)) => return Err(unusable(name, &other, "this program compresses nothing: none, or leave it away")),
        }
        let (name, endpoint) = match (variable(TRACES_ENDPOINT), variable(ENDPOINT)) {
            (Some(as_it_is), _) => (TRACES_ENDPOINT, as_it_is),
            (None, base) => (ENDPOINT, format!("{}/v1/traces", base.as_deref().unwrap_or(USUAL).trim_end_matches('/'))),
        };
        let uri = endpoint.parse::<Uri>().ok().filter(|uri| uri.authority().is_some());
        let uri = uri.ok_or_else(|| unusable(name, &endpoint, "a URL such as http://collector:4318"))?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(unusable(name, &endpoint, "http:// only; put a collector in between that speaks TLS to the outside"));
        }
        let headers = match own_or("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS") {
            None => Vec::new(),
            // The value is not told: it is where tokens stand.
            Some((name, text)) => {
                fields(&text).ok_or_else(|| unusable(name, "…", "written as name=value,name=value, with what is special in percent-encoding"))?
            }
        };
        let number = |name: &'static str, usual: u64, least: u64| match variable(name) {
            None => Ok(usual),
            Some(text) => text.parse().ok().filter(|number| *number >= least).ok_or_else(|| unusable(name, &text, "a whole number, and not too small")),
        };
        let timeout = match own_or("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT") {
            None => number("OTEL_BSP_EXPORT_TIMEOUT", 10_000, 1)?,
            Some((name, _)) => number(name, 10_000, 1)?,
        };
        let samples = variable("OTEL_TRACES_SAMPLER");
        let sampler = match samples.as_deref() {
            None => Ok(Sampler::USUAL),
            Some(name) => Sampler::read(name, variable("OTEL_TRACES_SAMPLER_ARG").as_deref()),
        };
        let sampler = sampler.map_err(|wrong| match wrong {
            Samples::NoName => unusable(
                "OTEL_TRACES_SAMPLER",
                samples.as_deref().unwrap_or_default(),
                "always_on, always_off, traceidratio, or one of these with parentbased_ before it",
            ),
            Samples::NoRatio(text) => unusable("OTEL_TRACES_SAMPLER_ARG", &text, "the part of all traces that is kept: a number from 0 to 1"),
        })?;
        let resource = match variable("OTEL_RESOURCE_ATTRIBUTES") {
            None => Vec::new(),
            Some(text) => pairs(&text).ok_or_else(|| unusable("OTEL_RESOURCE_ATTRIBUTES", &text, "written as key=value,key=value"))?,
        };
        let queue = usize::try_from(number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1)?).unwrap_or(usize::MAX).min(MOST_QUEUED);
        let batch = usize::try_from(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1)?).unwrap_or(usize::MAX);
        Ok(Some(Self {
            endpoint: uri,
            headers,
            timeout: Duration::from_millis(timeout),
            sampler,
            service: variable("OTEL_SERVICE_NAME").or_else(|| resource.iter().find(|(key, _)| key == "service.name").map(|(_, name)| name.clone())),
            resource: resource.into_iter().filter(|(key, _)| key != "service.name").collect(),
            delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5000, 1)?),
            queue,
            batch: batch.min(queue),
        }))
    }
}

/// A longer queue would take more memory than a sidecar should have: a span has about a kilobyte.
const MOST_QUEUED: usize = 65_536;

fn unusable(variable: &'static str, value: &str, rule: &'static str) -> Unusable {
    Unusable { variable, value: value.to_owned(), rule }
}

/// `key=value,key=value`, with percent-encoding.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    members.map(|member| member.split_once('=').and_then(|(key, value)| Some((decoded(key.trim())?, decoded(value.trim())?)))).collect()
}

fn fields(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let field = |(name, value): (String, String)| {
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::try_from(name).ok()?, value))
    };
    pairs(text)?.into_iter().map(field).collect()
}

/// Without percent-encoding (RFC 3986, section 2.1).
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(of: &[(&str, &str)]) -> Result<Option<Settings>, Unusable> {
        Settings::from_environment(|name| of.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn off_unless_something_says_where_or_that() {
        assert!(settings(&[]).unwrap().is_none());
        assert!(settings(&[("OTEL_SERVICE_NAME", "cart"), (ENDPOINT, " ")]).unwrap().is_none());
        assert!(settings(&[(ENDPOINT, "http://c:4318"), ("OTEL_TRACES_EXPORTER", "none")]).unwrap().is_none());
        assert!(settings(&[(ENDPOINT, "http://c:4318"), ("OTEL_SDK_DISABLED", "TRUE")]).unwrap().is_none());
        assert_eq!(settings(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap().unwrap().endpoint, "http://localhost:4318/v1/traces");
    }

    #[test]
    fn what_is_said_of_traces_goes_before_what_is_said_of_all() {
        let said = settings(&[
            (ENDPOINT, "http://all:4318/base/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, x-tenant=a"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "7000"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=ignored,deployment.environment.name=test%2C1"),
            ("OTEL_SERVICE_NAME", "shop"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "9"),
        ]);
        let said = said.unwrap().unwrap();
        assert_eq!(said.endpoint, "http://all:4318/base/v1/traces");
        assert_eq!(said.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect::<Vec<_>>(), [("authorization", "Bearer x"), ("x-tenant", "a")]);
        assert_eq!((said.timeout, said.delay), (Duration::from_secs(7), Duration::from_millis(100)));
        assert_eq!((said.queue, said.batch), (9, 9), "a batch is no larger than the queue");
        assert_eq!(said.service.as_deref(), Some("shop"));
        assert_eq!(said.resource, [("deployment.environment.name".to_owned(), "test,1".to_owned())]);
        let traces = [
            (ENDPOINT, "http://all:4318"),
            (TRACES_ENDPOINT, "http://traces:1/x"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2"),
        ];
        let said = settings(&traces).unwrap().unwrap();
        assert_eq!((said.endpoint, said.timeout), (Uri::from_static("http://traces:1/x"), Duration::from_millis(1)));
    }

    #[test]
    fn what_cannot_be_done_is_told_with_its_remedy_and_without_secrets() {
        let wrong: [(&[(&str, &str)], &str); 8] = [
            (&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: http/protobuf"),
            (&[(ENDPOINT, "https://c:4318")], "a collector in between"),
            (&[(ENDPOINT, "collector")], "http://collector:4318"),
            (&[("OTEL_TRACES_EXPORTER", "zipkin")], "otlp or none"),
            (&[("OTEL_TRACES_SAMPLER", "some")], "parentbased_"),
            (&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")], "from 0 to 1"),
            (&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization: geheim")], "name=value"),
            (&[("OTEL_BSP_MAX_QUEUE_SIZE", "0")], "not too small"),
        ];
        for (environment, expected) in wrong {
            let of: Vec<_> = [("OTEL_TRACES_EXPORTER", "otlp")]
                .into_iter()
                .filter(|(n, _)| environment.iter().all(|(m, _)| m != n))
                .chain(environment.iter().copied())
                .collect();
            let told = settings(&of).unwrap_err().to_string();
            assert!(told.contains(expected) && !told.contains("geheim"), "{told}");
        }
    }
}
