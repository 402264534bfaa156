//! The picture of a run.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use plotters::prelude::*;
use serde_json::{Map, Value};

use crate::report::figure;

#[derive(Debug, Args)]
pub(crate) struct PlotOptions {
    /// What a run has written.
    #[arg(long, default_value = "target/bench.json")]
    input: PathBuf,
    /// The picture, as SVG.
    #[arg(long, default_value = "docs/performance.svg")]
    output: PathBuf,
}

/// One bar: what it stands for, p50 and p99 in ms.
struct Bar {
    label: String,
    p50: f64,
    p99: f64,
}

/// Draws the sequential times and, if there are any, those at given rates.
pub(crate) fn run(options: &PlotOptions) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&options.input).with_context(|| options.input.display().to_string())?;
    let figures: Map<String, Value> = serde_json::from_str(&text).with_context(|| options.input.display().to_string())?;
    let bar = |name: &str, label: &str, figures: &Map<String, Value>| {
        Some(Bar { label: label.to_owned(), p50: figure(figures, name, "p50_us")? / 1_000.0, p99: figure(figures, name, "p99_us")? / 1_000.0 })
    };
    let mut bars: Vec<_> = [("direct", "direct"), ("passthrough", "pass-through"), ("floor", "floor"), ("durable", "durable")]
        .iter()
        .filter_map(|(name, label)| bar(name, label, &figures))
        .collect();
    if let Some(three) = figures.get("replication_3").and_then(Value::as_object) {
        bars.extend([("floor", "floor, 3 brokers"), ("durable", "durable, 3 brokers")].iter().filter_map(|(name, label)| bar(name, label, three)));
    }
    anyhow::ensure!(!bars.is_empty(), "{}: no sequential figures in it", options.input.display());
    draw(&bars, options).map_err(|error| anyhow::anyhow!("{}: {error}", options.output.display()))
}

fn draw(bars: &[Bar], options: &PlotOptions) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(&options.output, (860, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let count = u32::try_from(bars.len())?;
    let top = bars.iter().map(|bar| bar.p99).fold(0.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&area)
        .caption("One call after the other, 1 KiB: milliseconds to the answer", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..f64::from(count), 0.0..top)?;
    let label = |at: &f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number that is not negative")]
        let number = at.floor() as usize;
        bars.get(number).filter(|_| (at.fract() - 0.5).abs() < 0.01).map_or_else(String::new, |bar| bar.label.clone())
    };
    chart.configure_mesh().disable_x_mesh().x_labels(2 * bars.len() + 1).x_label_formatter(&label).y_desc("ms").label_style(("sans-serif", 13)).draw()?;
    let (dark, light) = (RGBColor(31, 78, 121), RGBColor(157, 195, 230));
    for (name, colour, left, right, of) in
        [("p50", dark, 0.15, 0.48, (|bar: &Bar| bar.p50) as fn(&Bar) -> f64), ("p99", light, 0.52, 0.85, |bar: &Bar| bar.p99)]
    {
        let places = (0..count).map(f64::from).zip(bars);
        chart
            .draw_series(places.clone().map(|(at, bar)| Rectangle::new([(at + left, 0.0), (at + right, of(bar))], colour.filled())))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        chart.draw_series(places.map(|(at, bar)| Text::new(format!("{:.2}", of(bar)), (at + left + 0.04, of(bar) + top * 0.04), ("sans-serif", 12))))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()?;
    Ok(())
}
