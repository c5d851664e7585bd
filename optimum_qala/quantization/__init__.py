"""Export to OpenVINO and quantization to int8."""
