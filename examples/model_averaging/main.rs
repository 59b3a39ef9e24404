//! How much of an average should one take over? Theory and experiment for one number.
//!
//! F. Grimberg, M.-A. Hartley, S. P. Karimireddy, M. Jaggi: "Optimal Model Averaging: Towards Personalized
//! Collaborative Learning", FL-ICML workshop 2021, arXiv 2110.12946.
//!
//! A client has 10 numbers and estimates their mean; its peers have 100 numbers whose mean is another. The client moves
//! the share `alpha` of the way to the peers' mean. Prints what that saves, and draws it where a path is given:
//!
//! ```sh
//! cargo run -p fedburn-examples --bin model_averaging -- docs/figures/model-averaging.svg
//! ```

use std::error::Error;

use fedburn::core::{Purpose, Seed};
use fedburn::strategies::Averaging;
use plotters::prelude::*;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal, StudentT};

/// Numbers of the client and of its peers.
const NUMBERS: (usize, usize) = (10, 100);

/// Where the numbers come from.
#[derive(Clone, Copy, Debug)]
enum Data {
    /// Normal with variance 1; the peers' mean is 0.5 away.
    Gaussian,
    /// Zeros and ones, ones with probability 0.3; the peers' with 0.4.
    Bernoulli,
    /// Student's t with 5 degrees of freedom; the peers' mean is 0.4 away.
    HeavyTailed,
}

impl Data {
    const ALL: [Self; 3] = [Self::Gaussian, Self::Bernoulli, Self::HeavyTailed];

    /// Means of the client's and the peers' numbers.
    fn means(self) -> (f64, f64) {
        match self {
            Self::Gaussian => (0.0, 0.5),
            Self::Bernoulli => (0.3, 0.4),
            Self::HeavyTailed => (0.0, 0.4),
        }
    }

    /// Variance of one number around a mean.
    fn variance(self, mean: f64) -> f64 {
        match self {
            Self::Gaussian => 1.0,
            Self::Bernoulli => mean * (1.0 - mean),
            Self::HeavyTailed => 5.0 / 3.0,
        }
    }

    fn draw(self, mean: f64, rng: &mut impl Rng) -> f64 {
        match self {
            Self::Gaussian => mean + Distribution::<f64>::sample(&StandardNormal, rng),
            Self::Bernoulli => f64::from(u8::from(rand::RngExt::random::<f64>(rng) < mean)),
            Self::HeavyTailed => mean + StudentT::new(5.0).map_or(0.0, |t: StudentT<f64>| t.sample(rng)),
        }
    }

    fn theory(self) -> Averaging {
        let ((own, peers), (few, many)) = (self.means(), NUMBERS);
        Averaging::independent(self.variance(own) / few as f64, self.variance(peers) / many as f64, peers - own)
    }
}

/// A mean over repetitions and its standard error.
#[derive(Clone, Copy, Debug)]
struct Measured {
    mean: f64,
    error: f64,
}

impl Measured {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let variance = values.map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Self { mean, error: (variance / count).sqrt() }
    }
}

/// Risk and benefit of each share over `repetitions` experiments.
fn experiment(data: Data, shares: &[f64], repetitions: usize, seed: Seed) -> Vec<(Measured, Measured)> {
    let (mut rng, (own, peers)) = (seed.rng(), data.means());
    let mut mean = |of: f64, count: usize| (0..count).map(|_| data.draw(of, &mut rng)).sum::<f64>() / count as f64;
    let pairs: Vec<_> = (0..repetitions).map(|_| (mean(own, NUMBERS.0), mean(peers, NUMBERS.1))).collect();
    let square = |share: f64, (local, global): (f64, f64)| ((1.0 - share) * local + share * global - own).powi(2);
    let measure = |&share: &f64| {
        let risk = Measured::of(pairs.iter().map(|&pair| square(share, pair)));
        (risk, Measured::of(pairs.iter().map(|&pair| square(0.0, pair) - square(share, pair))))
    };
    shares.iter().map(measure).collect()
}

/// Twenty-one shares from 0 to 1.
fn shares() -> Vec<f64> {
    (0..=20).map(|i| f64::from(i) / 20.0).collect()
}

fn seed(data: Data) -> Seed {
    Seed::new(0).purpose(Purpose::Data).index(data as u64)
}

fn main() -> Result<(), Box<dyn Error>> {
    let shares = shares();
    let mut drawn = Vec::new();
    for data in Data::ALL {
        let theory = data.theory();
        let measured = experiment(data, &shares, 20_000, seed(data));
        println!("{data:?}: best share {:.3}, harmful from {:.3}", theory.optimal_weight(), theory.break_even());
        println!("  share  risk by theory and experiment    benefit by theory and experiment");
        for (share, (risk, benefit)) in shares.iter().zip(&measured).step_by(2) {
            println!(
                "  {share:5.2}  {:.5}  {:.5} ± {:.5}        {:+.5}  {:+.5} ± {:.5}",
                theory.risk(*share),
                risk.mean,
                risk.error,
                theory.benefit(*share),
                benefit.mean,
                benefit.error
            );
        }
        drawn.push((data, measured));
    }
    match std::env::args().nth(1) {
        Some(path) => draw(&path, &shares, &drawn),
        None => Ok(()),
    }
}

/// Draws the benefit in shares of the local risk: curves are theory, dots with two standard errors the experiment.
fn draw(path: &str, shares: &[f64], drawn: &[(Data, Vec<(Measured, Measured)>)]) -> Result<(), Box<dyn Error>> {
    let colours = [RGBColor(0x00, 0x72, 0xB2), RGBColor(0xD5, 0x5E, 0x00), RGBColor(0x00, 0x9E, 0x73)];
    let labels = ["Gaussian", "Bernoulli", "heavy-tailed (t, 5 degrees)"];
    let root = SVGBackend::new(path, (720, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..1.0, -1.0..1.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(0xE2, 0xE5, 0xE9))
        .x_desc("alpha, share of the peers' mean in the estimate")
        .y_desc("benefit B(alpha) / V_l: share of the local risk that is saved")
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 14))
        .draw()?;
    chart.draw_series([PathElement::new([(0.0, 0.0), (1.0, 0.0)], BLACK.mix(0.5))])?;
    for (((data, measured), colour), label) in drawn.iter().zip(colours).zip(labels) {
        let theory = data.theory();
        let relative = |benefit: f64| benefit / theory.local_variance;
        let curve = (0..=40).map(|i| f64::from(i) / 40.0).map(|share| (share, relative(theory.benefit(share))));
        let curve = curve.filter(|(_, y)| *y > -1.0);
        let harm = match theory.break_even() {
            even if even < 1.0 => format!("harmful from {even:.2}"),
            _ => "never harmful".to_owned(),
        };
        let text = format!("{label}: best {:.2}, {harm}", theory.optimal_weight());
        chart
            .draw_series(LineSeries::new(curve, colour.stroke_width(2)))?
            .label(text)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let points = shares.iter().zip(measured).map(|(share, (_, b))| (*share, relative(b.mean), relative(b.error)));
        for (share, mean, error) in points.filter(|(_, mean, _)| *mean > -1.0) {
            let bar = [(share, mean - 2.0 * error), (share, mean + 2.0 * error)];
            chart.draw_series([PathElement::new(bar, colour.stroke_width(1))])?;
            chart.draw_series([Circle::new((share, mean), 3, colour.filled())])?;
        }
        let best = (theory.optimal_weight(), relative(theory.max_benefit()));
        chart.draw_series([Circle::new(best, 7, colour.stroke_width(2))])?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font(("sans-serif", 14))
        .background_style(WHITE)
        .border_style(RGBColor(0xE2, 0xE5, 0xE9))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_experiment_agrees_with_the_theory_within_its_error() {
        for data in Data::ALL {
            let (theory, shares) = (data.theory(), shares());
            for (share, (risk, benefit)) in shares.iter().zip(experiment(data, &shares, 4_000, seed(data))) {
                let expected = [(risk, theory.risk(*share)), (benefit, theory.benefit(*share))];
                for (measured, expected) in expected {
                    let distance = (measured.mean - expected).abs();
                    assert!(distance <= 4.0 * measured.error, "{data:?}, {share}: {measured:?}, expected {expected}");
                    assert!(measured.error < 0.05 * theory.risk(1.0).max(theory.risk(0.0)), "the error says something");
                }
            }
        }
    }

    #[test]
    fn averaging_helps_up_to_twice_the_best_share_and_no_further() {
        for data in Data::ALL {
            let theory = data.theory();
            let even = theory.break_even();
            let shares = [theory.optimal_weight(), 0.8 * even, 1.25 * even];
            let benefits: Vec<_> = experiment(data, &shares, 20_000, seed(data)).into_iter().map(|(_, b)| b).collect();
            assert!(benefits[0].mean > benefits[1].mean, "{data:?}");
            assert!(benefits[1].mean > 2.0 * benefits[1].error, "{data:?}: {benefits:?}");
            assert!(benefits[2].mean < -2.0 * benefits[2].error, "{data:?}: {benefits:?}");
        }
    }
}
