"""Detection in Detectron2: fine-tuning on VOC, and VOC trees of one's own."""
