"""Detection in Detectron2: fine-tuning on VOC, and making and checking your own VOC trees."""
