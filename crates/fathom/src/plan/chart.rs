//! The plan as a chart: memory by component, and speed, against context.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{Memory, Report};
use crate::ui::commas;

const SIZE: (u32, u32) = (1100, 520);
const FONT: &str = "sans-serif";
/// Colours that stay apart for the colour-blind and in grey (Okabe and Ito's), dark at the bottom of a column.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(240, 228, 66),
    RGBColor(190, 190, 190),
];
const DECODE: RGBColor = RGBColor(213, 94, 0);
const PREFILL: RGBColor = RGBColor(0, 114, 178);

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// An SVG of the contexts that fit.
///
/// # Errors
/// None of them fits.
pub fn chart(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    let fits: Vec<(usize, &Memory)> =
        report.points.iter().filter_map(|point| Some((point.context, point.memory.as_ref()?))).collect();
    if fits.is_empty() {
        return Err("there is nothing to draw: no context fits".into());
    }
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let title = format!("{} on {}", report.model, report.machine.name);
        let area = area.titled(&title, (FONT, 20))?;
        let (left, right) = area.split_horizontally(SIZE.0 as i32 / 2);
        memory(&left, &fits)?;
        speed(&right, report)?;
        area.present()?;
    }
    Ok(text)
}

/// `4k`, `1M`: a context in few letters.
fn short(context: usize) -> String {
    match context {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{}M", n >> 20),
        n if n >= 1024 && n.is_multiple_of(1024) => format!("{}k", n >> 10),
        n => commas(n),
    }
}

fn memory<'a>(area: &DrawingArea<SVGBackend<'a>, Shift>, fits: &[(usize, &Memory)]) -> Drawn {
    const GIB: f64 = (1u64 << 30) as f64;
    let most = fits.iter().map(|(_, m)| m.total).max().unwrap_or(1) as f64 / GIB;
    // Small models are told in MiB.
    let (unit, scale) = if most < 2.0 { ("MiB", 1024.0) } else { ("GiB", 1.0) };
    let parts = |m: &Memory| {
        [m.weights, m.experts.unwrap_or(0), m.state, m.scratch, m.program].map(|bytes| bytes as f64 / GIB * scale)
    };
    let names = ["weights", "experts", "state", "scratch", "program"];
    // The legend has its place above the columns.
    let top = most * scale * 1.5;
    let mut chart = ChartBuilder::on(area)
        .caption("Memory", (FONT, 17))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..fits.len() as f64, 0.0..top)?;
    let at = |x: &f64| {
        let i = x.floor();
        let middle = (x - i - 0.5).abs() < 1e-6;
        fits.get(i as usize).filter(|_| middle).map_or(String::new(), |(context, _)| short(*context))
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * fits.len() + 1)
        .x_label_formatter(&at)
        .y_label_formatter(&|y| if *y >= 100.0 { commas(*y as usize) } else { format!("{y:.1}") })
        .x_desc("context, tokens")
        .y_desc(unit)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (which, (name, colour)) in names.into_iter().zip(COLOURS).enumerate() {
        if fits.iter().all(|(_, m)| parts(m)[which] == 0.0) {
            continue;
        }
        let bars = fits.iter().enumerate().map(|(i, (_, m))| {
            let below: f64 = parts(m)[..which].iter().sum();
            let corners = [(i as f64 + 0.2, below), (i as f64 + 0.8, below + parts(m)[which])];
            Rectangle::new(corners, colour.filled())
        });
        chart
            .draw_series(bars)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 14, y + 6)], colour.filled()));
        let edges = fits.iter().enumerate().map(|(i, (_, m))| {
            let below: f64 = parts(m)[..which].iter().sum();
            let corners = [(i as f64 + 0.2, below), (i as f64 + 0.8, below + parts(m)[which])];
            Rectangle::new(corners, BLACK.stroke_width(1))
        });
        chart.draw_series(edges)?;
    }
    let totals = fits.iter().enumerate().map(|(i, (_, m))| {
        let height = m.total as f64 / GIB * scale;
        let digits = if height >= 100.0 { commas(height.round() as usize) } else { format!("{height:.1}") };
        let middle = (FONT, 14).into_text_style(area).pos(Pos::new(HPos::Center, VPos::Bottom));
        EmptyElement::at((i as f64 + 0.5, height)) + Text::new(digits, (0, -4), middle)
    });
    chart.draw_series(totals)?;
    legend(&mut chart)
}

fn legend<'a, X: Ranged, Y: Ranged>(chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>) -> Drawn {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.4))
        .label_font((FONT, 14))
        .draw()
        .map_err(|e| e.to_string().into())
}

fn speed<'a>(area: &DrawingArea<SVGBackend<'a>, Shift>, report: &Report) -> Drawn {
    let of = |rate: fn(&super::report::Point) -> Option<f64>| -> Vec<(f64, f64)> {
        report.points.iter().filter_map(|point| Some((point.context as f64, rate(point)?))).collect()
    };
    let decode = of(|point| Some(point.decode.as_ref()?.tokens_per_second));
    let prefill = of(|point| Some(point.prefill.as_ref()?.tokens_per_second));
    let all: Vec<(f64, f64)> = decode.iter().chain(&prefill).copied().collect();
    if all.is_empty() {
        return Ok(());
    }
    let fold = |of: fn(&(f64, f64)) -> f64, with: fn(f64, f64) -> f64, from: f64| all.iter().map(of).fold(from, with);
    let (x0, x1) = (fold(|p| p.0, f64::min, f64::INFINITY), fold(|p| p.0, f64::max, 1.0));
    let (y0, y1) = (fold(|p| p.1, f64::min, f64::INFINITY), fold(|p| p.1, f64::max, 0.0));
    let decade = |y: f64, up: bool| 10f64.powf(if up { y.log10().ceil() } else { y.log10().floor() });
    let (low, high) = (decade(y0, false), decade(y1 * 1.5, true));
    let mut chart = ChartBuilder::on(area)
        .caption("Speed at the context's end", (FONT, 17))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(
            ((x0 / 1.4)..(x1 * 1.4))
                .log_scale()
                .base(2.0)
                .with_key_points(report.points.iter().map(|p| p.context as f64).collect()),
            (low..high.max(low * 10.0)).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_label_formatter(&|x| short(x.round() as usize))
        .y_label_formatter(&|y| if *y >= 1.0 { commas(y.round() as usize) } else { format!("{y}") })
        .x_desc("context, tokens")
        .y_desc("tokens/s, by tens")
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let label = |y: f64| super::per_second(y).trim_end_matches("/s").to_owned();
    let lines = [("prompt is read", PREFILL, prefill, false), ("answer is written", DECODE, decode, true)];
    for (name, colour, points, square) in lines {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(3)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3)));
        for &(x, y) in &points {
            let text = Text::new(label(y), (-14, -22), (FONT, 14));
            if square {
                let mark = Rectangle::new([(-4, -4), (4, 4)], colour.filled());
                chart.draw_series([EmptyElement::at((x, y)) + mark + text])?;
            } else {
                chart.draw_series([EmptyElement::at((x, y)) + Circle::new((0, 0), 5, colour.filled()) + text])?;
            }
        }
    }
    legend(&mut chart)
}
