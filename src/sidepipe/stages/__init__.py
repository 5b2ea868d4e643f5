"""The stages, from the images to the report; each is a package here and a config group.

`STAGES` is the only list of them. A new stage is a package, a folder of `conf`, and a line here;
the engine, the sweep and tracking read everything else from the facts of its class (see
`sidepipe.engine.stage.Stage`). Nothing is imported here, so that help and status stay light.
"""

# In flow order, by name, the class with the facts: the stage, or the base of its variants. A stage
# reads earlier ones; the last one reads every stage whose class is `reported`.
STAGES: dict[str, str] = {
    "data": "sidepipe.stages.data.stage.Data",
    "autoencoder": "sidepipe.stages.autoencoder.stage.Autoencoder",
    "dpm": "sidepipe.stages.dpm.stage.DPM",
    "generate": "sidepipe.stages.generate.stage.Generate",
    "shadow": "sidepipe.stages.shadow.stage.Shadow",
    "original": "sidepipe.stages.original.stage.Original",
    "label": "sidepipe.stages.label.stage.Label",
    "classifier": "sidepipe.stages.classifier.stage.Classifier",
    "lora": "sidepipe.stages.lora.stage.Lora",
    "tune": "sidepipe.stages.tune.stage.Tune",
    "extract": "sidepipe.stages.extract.stage.Extract",
    "descriptor": "sidepipe.stages.descriptor.stage.Descriptor",
    "reference": "sidepipe.stages.reference.stage.Reference",
    "clock": "sidepipe.stages.clock.stage.Clock",
    "audit": "sidepipe.stages.audit.stage.Audit",
    "evaluate": "sidepipe.stages.evaluate.stage.Evaluate",
    "verdict": "sidepipe.stages.verdict.stage.Verdict",
    "detect": "sidepipe.stages.detect.base.Detect",
    "explain": "sidepipe.stages.explain.stage.Explain",
    "mitigate": "sidepipe.stages.mitigate.stage.Mitigate",
    "search": "sidepipe.stages.search.stage.Search",
    "canaries": "sidepipe.stages.canaries.stage.CanaryAudit",
    "report": "sidepipe.stages.report.stage.Report",
}
