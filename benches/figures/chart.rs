//! Draws a curve as SVG, with only the elements that a reader needs.

use std::fmt::Write;

use crate::curves::Curve;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
/// The margins of the plot, for the labels.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Draws the abscissae in order at equal distances, because each is double the previous one.
pub(crate) fn svg(curve: &Curve) -> String {
    let values: Vec<f64> = curve.rows.iter().map(|(_, values)| values[0]).collect();
    let top = round_up(values.iter().copied().fold(0.0, f64::max));
    let last = curve.rows.len().saturating_sub(1).max(1);
    let x = |index: usize| LEFT + (WIDTH - LEFT - RIGHT) * ratio(index, last);
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"{middle}\" y=\"{foot}\" text-anchor=\"middle\">{below}</text>\n\
         <text transform=\"translate(16 {side}) rotate(-90)\" text-anchor=\"middle\">{beside}</text>\n",
        title = curve.title,
        middle = (LEFT + WIDTH - RIGHT) / 2.0,
        foot = HEIGHT - 10.0,
        side = (TOP + HEIGHT - BOTTOM) / 2.0,
        below = curve.x,
        beside = curve.y,
    );
    for step in 0..=4 {
        // Rounded, to remove the last digits of an inexact division.
        let value = (top * ratio(step, 4) * 1e6).round() / 1e6;
        let _infallible = writeln!(
            text,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{label}\" y=\"{base:.1}\" text-anchor=\"end\">{value}</text>",
            at = y(value),
            right = WIDTH - RIGHT,
            label = LEFT - 8.0,
            base = y(value) + 4.0,
        );
    }
    let mut line = String::new();
    for (index, ((abscissa, _), value)) in curve.rows.iter().zip(&values).enumerate() {
        let (across, up) = (x(index), y(*value));
        let _infallible = write!(line, "{}{across:.1} {up:.1}", if index == 0 { "M" } else { "L" });
        let _infallible = writeln!(
            text,
            "<circle cx=\"{across:.1}\" cy=\"{up:.1}\" r=\"4\" fill=\"#1f6feb\"/>\
             <text x=\"{across:.1}\" y=\"{below}\" text-anchor=\"middle\">{abscissa}</text>",
            below = HEIGHT - BOTTOM + 18.0,
        );
    }
    let _infallible =
        writeln!(text, "<path d=\"{line}\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"2\"/>");
    text + "</svg>\n"
}

fn ratio(part: usize, whole: usize) -> f64 {
    let number = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    number(part) / number(whole)
}

/// Returns the next of 1, 2, 4 or 8 times a power of ten, which four steps divide well.
fn round_up(value: f64) -> f64 {
    let mut top = 10f64.powf(value.max(1e-6).log10().floor());
    while top < value {
        top *= 2.0;
    }
    top
}
