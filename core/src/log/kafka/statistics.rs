//! What librdkafka says of its brokers (its `STATISTICS.md`), as far as it is wanted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::log::{BrokerStatistics, Statistics};

#[derive(Deserialize)]
struct Said {
    msg_cnt: u64,
    msg_size: u64,
    brokers: BTreeMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    nodeid: i32,
    state: String,
    outbuf_cnt: i64,
    waitresp_cnt: i64,
    rtt: Window,
}

/// Of the last interval, in microseconds.
#[derive(Deserialize)]
struct Window {
    avg: i64,
    p99: i64,
}

/// Reads it.
pub(super) fn read(json: &[u8]) -> Result<Statistics, serde_json::Error> {
    let said: Said = serde_json::from_slice(json)?;
    let micros = |n: i64| Duration::from_micros(u64::try_from(n).unwrap_or(0));
    let brokers = said
        .brokers
        .into_values()
        // What was only named as an address to begin with has no number yet; coordinators are brokers that are there a second time.
        .filter(|broker| broker.nodeid >= 0)
        .map(|broker| BrokerStatistics {
            node: broker.nodeid,
            connected: broker.state == "UP",
            requests_waiting: u32::try_from(broker.outbuf_cnt.saturating_add(broker.waitresp_cnt)).unwrap_or(0),
            round_trip_mean: micros(broker.rtt.avg),
            round_trip_p99: micros(broker.rtt.p99),
        });
    Ok(Statistics { queued_records: said.msg_cnt, queued_bytes: said.msg_size, brokers: brokers.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_read_and_addresses_to_begin_with_are_not() {
        let json = br#"{"name":"x#producer-1","msg_cnt":3,"msg_size":300,"brokers":{
            "127.0.0.1:9092/bootstrap":{"nodeid":-1,"state":"INIT","outbuf_cnt":0,"waitresp_cnt":0,"rtt":{"avg":0,"p99":0,"min":0}},
            "127.0.0.1:9092/1":{"nodeid":1,"state":"UP","outbuf_cnt":1,"waitresp_cnt":2,"rtt":{"avg":850,"p99":2100,"min":1}}},"topics":{}}"#;
        let read = read(json).unwrap();
        assert_eq!((read.queued_records, read.queued_bytes), (3, 300));
        let broker = BrokerStatistics {
            node: 1,
            connected: true,
            requests_waiting: 3,
            round_trip_mean: Duration::from_micros(850),
            round_trip_p99: Duration::from_micros(2100),
        };
        assert_eq!(read.brokers, [broker]);
    }
}
