"""pytorch-forecasting's temporal fusion transformer: an LSTM encoder hands its state to an LSTM decoder."""

import torch
from comparison import compare
from pytorch_forecasting.metrics import MAE
from pytorch_forecasting.models.temporal_fusion_transformer._tft_v2 import TFT
from torch import Tensor

SIZES = {
    "max_encoder_length": 60,
    "max_prediction_length": 24,
    "encoder_cont": 6,
    "encoder_cat": 2,
    "decoder_cont": 3,
    "decoder_cat": 2,
    "static_categorical_features": 1,
    "static_continuous_features": 2,
}


def test_the_temporal_fusion_transformer() -> None:
    torch.manual_seed(0)
    model = TFT(MAE(), metadata=SIZES, hidden_size=64, num_layers=2, dropout=0.0)
    x = {
        "encoder_cont": torch.randn(16, 60, 6),
        "encoder_cat": torch.randn(16, 60, 2),
        "decoder_cont": torch.randn(16, 24, 3),
        "decoder_cat": torch.randn(16, 24, 2),
        "static_categorical_features": torch.randn(16, 1, 1),
        "static_continuous_features": torch.randn(16, 1, 2),
    }

    def run(one: TFT) -> dict[str, Tensor]:
        return {"prediction": one(x)["prediction"]}

    compare("pytorch-forecasting", "temporal fusion transformer (v2), 2 + 2 layers", model, run)
