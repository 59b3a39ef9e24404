#![allow(missing_docs, clippy::unwrap_used)]
use burn_flex::{Flex, FlexDevice};
use fedburn_core::*;
use fedburn_data::*;
use fedburn_models::ZooConfig;
use fedburn_train::*;
use std::sync::Arc;
use std::time::Instant;
fn main() {
    let n = 3200;
    let ex = Arc::new(
        Examples::new(
            Inputs::F32((0..n * 784).map(|i| ((i * 7919) % 255) as f32 / 255.0).collect()),
            [1, 28, 28],
            (0..n).map(|i| ClassId((i % 10) as u32)).collect(),
            10,
        )
        .unwrap(),
    );
    for (name, zoo) in [("2nn", ZooConfig::TwoNn { hidden: 200 }), ("cnn", ZooConfig::FedAvgCnn {})] {
        let n = if name == "cnn" { 640 } else { n };
        let family = zoo.build([1, 28, 28], 10).unwrap();
        let global = flatten::<Flex, _>(&family.init(Seed::new(0), &FlexDevice)).unwrap();
        for (what, cfg) in [
            ("plain", LocalTrainingConfig::sgd(1, 32, 0.01)),
            ("mom", LocalTrainingConfig { momentum: 0.9, ..LocalTrainingConfig::sgd(1, 32, 0.01) }),
            (
                "mom+wd+clip",
                LocalTrainingConfig {
                    momentum: 0.9,
                    weight_decay: 1e-4,
                    clip_norm: Some(1.0),
                    ..LocalTrainingConfig::sgd(1, 32, 0.01)
                },
            ),
        ] {
            let list: ClientList = [
                ClientData::new(ex.clone(), (0..n).collect()).unwrap(),
                ClientData::new(ex.clone(), (0..1).collect()).unwrap(),
            ]
            .into_iter()
            .collect();
            let pop =
                SupervisedPopulation::<Flex, _>::new(Arc::new(list), family.clone(), cfg.build().unwrap(), FlexDevice);
            let mut w = pop.worker();
            let task = TrainTask {
                round: RoundIndex(1),
                global: global.clone(),
                seed: Seed::new(1),
                side: SideInfo::default(),
                reports: Reports::default(),
            };
            for _ in 0..2 {
                let t = Instant::now();
                w.client(ClientId(0)).unwrap().train(&task).unwrap();
                println!("{name} {what}: {:.3} ms/step", t.elapsed().as_secs_f64() * 1e3 / (n as f64 / 32.0));
            }
            let t = Instant::now();
            for _ in 0..10 {
                w.client(ClientId(1)).unwrap().train(&task).unwrap();
            }
            println!("  one-example client: {:.3} ms", t.elapsed().as_secs_f64() * 100.0);
            let t = Instant::now();
            for _ in 0..10 {
                global.is_finite();
            }
            println!("  is_finite: {:.3} ms", t.elapsed().as_secs_f64() * 100.0);
            let t = Instant::now();
            for _ in 0..10 {
                std::hint::black_box(global.values().clone().sum().into_scalar());
            }
            println!("  sum: {:.3} ms", t.elapsed().as_secs_f64() * 100.0);
        }
    }
}
